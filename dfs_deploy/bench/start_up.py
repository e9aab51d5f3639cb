"""How long a process takes from its imports to a first result, and what memory it then holds.

The process that is timed imports this module before its clock runs, so only cheap modules are imported at the top.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.options import Budget
from dfs_deploy.progress import Progress, silent
from dfs_deploy.system.process import end_with_parent

if TYPE_CHECKING:
    from dfs_deploy.bench.result import StartUp

_CHILD = (
    "import os, sys; sys.path[:] = sys.argv.pop().split(os.pathsep);"
    " from dfs_deploy.bench.start_up import start; start(sys.argv[1])"
)
"""Imports what this process would, and nothing from the current directory that this process would not."""

_RESULTS = 20
"""Results before memory is looked at, the first included."""


def measure_start_up(
    bundle: Path,
    cases: Sequence[str],
    processes: int,
    *,
    threads: int = 1,
    plan: bool = True,
    prepared: bool = True,
    budget: Budget = None,
    progress: Progress = silent,
) -> tuple[StartUp, ...]:
    """Starts processes, the cases in rounds.

    Args:
        bundle: path of the bundle.
        cases: names of cases: ``dfs``, ``static-int8`` and the like.
        processes: processes per case; 0 for none.
        threads: threads that one engine may use.
        plan: whether to use the engine choice measured on this machine.
        prepared: whether to run engines prepared for this machine.
        budget: budget of the dynamic network.
        progress: progress over the processes.

    Raises:
        EnvironmentLacksError: a process did not end well.
    """
    from dfs_deploy.bench.result import StartUp

    wanted = {"parent": os.getpid(), "bundle": str(bundle), "threads": threads}
    wanted |= {"plan": plan, "prepared": prepared, "budget": budget}
    starts: dict[str, list[dict[str, Any]]] = {case: [] for case in cases if processes}
    for i in range(processes):
        for j, case in enumerate(cases):
            progress("starting processes", (i * len(cases) + j) / (processes * len(cases)))
            starts[case].append(_run({**wanted, "case": case}))
    found = []
    for case, times in starts.items():
        medians: dict[str, Any] = {
            key: None if value is None else median(each[key] for each in times) for key, value in times[0].items()
        }
        total_ms = medians["import_ms"] + medians["load_ms"] + medians["first_result_ms"]
        found.append(StartUp(name=case, processes=processes, total_ms=total_ms, **medians))
    return tuple(found)


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Runs ``start`` in a process of its own."""
    arguments = [json.dumps(wanted), os.pathsep.join(sys.path)]
    ran = subprocess.run(  # noqa: S603 (this interpreter, our own module)
        [sys.executable, "-c", _CHILD, *arguments], capture_output=True, check=False
    )
    if ran.returncode != 0:
        last = (ran.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise EnvironmentLacksError(
            f"a process that starts {wanted['case']} ended with {ran.returncode} ({last}), expected 0; leave"
            " start-up out with --start-ups 0"
        )
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def start(argument: str) -> None:
    """Loads one case in this process, gives some results, and prints how long each part took, as a JSON object.

    Args:
        argument: JSON object with the case and with what its runtime is made from.
    """
    wanted = json.loads(argument)
    end_with_parent(wanted["parent"])
    clock = time.perf_counter
    begin = clock()
    import numpy as np

    import dfs_deploy.system.ort  # noqa: F401 (every case needs it, and its import is no part of loading)
    from dfs_deploy.bench.result import STATIC
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.runtimes import Runtime
    from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

    imported, before = clock(), _resident_mb("VmRSS")
    bundle, case, threads = Bundle(wanted["bundle"]), wanted["case"], wanted["threads"]
    network: Runtime | StaticEngine
    if case.startswith(STATIC):
        precision = next(p for p in bundle.manifest.runtimes["onnxruntime"].static if case == f"{STATIC}{p}")
        network = StaticEngine(bundle, precision, threads)
    else:
        network = Runtime(
            bundle, threads=threads, plan=wanted["plan"], prepared=wanted["prepared"], budget=wanted["budget"]
        )
    loaded = clock()
    with network:
        images = np.random.default_rng(0).normal(size=(_RESULTS, 1, *bundle.input.shape)).astype(np.float32)
        drawn = clock()
        network(images[0])
        first = clock()
        for image in images[1:]:
            network(image)
        after = _resident_mb("VmRSS")
    found = {
        "import_ms": 1e3 * (imported - begin),
        "load_ms": 1e3 * (loaded - imported),
        "first_result_ms": 1e3 * (first - drawn),
        "rss_mb": after,
        "peak_rss_mb": _resident_mb("VmHWM"),
        "loaded_mb": None if after is None or before is None else after - before,
    }
    sys.stdout.write(json.dumps(found))


def _resident_mb(key: str) -> float | None:
    """Resident memory now (``VmRSS``) or at most (``VmHWM``), in MB of 10**6 bytes; ``None`` without ``/proc``."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = (line.split() for line in status.read_text().splitlines())
    return next((int(line[1]) * 1024 / 1e6 for line in lines if line[0] == f"{key}:"), None)
