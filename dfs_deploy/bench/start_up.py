"""How long a process takes from its imports to a first result, and what memory it then holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from dfs_deploy.errors import EnvironmentLacksError

_CHILD = (
    "import os, sys; sys.path[:] = sys.argv.pop().split(os.pathsep); from dfs_deploy.bench.child import main; main()"
)
"""Imports what this process would, and nothing from the current directory that this process would not."""


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    """Start of a process of its own for one case, medians over processes; files are in the system's cache.

    Attributes:
        name: of the case.
        processes: how many were started.
        import_ms: NumPy, ONNX Runtime and dfs-deploy; the interpreter's own start is left out.
        load_ms: opening the bundle, checking every digest, making every session.
        first_result_ms: the first call, batch 1.
        rss_mb: resident memory after twenty results, in 10**6 bytes; ``None`` where the system does not say.
        peak_rss_mb: most until then.
        loaded_mb: ``rss_mb`` less what was resident after the imports.
    """

    name: str
    processes: int
    import_ms: float
    load_ms: float
    first_result_ms: float
    rss_mb: float | None
    peak_rss_mb: float | None
    loaded_mb: float | None

    @property
    def total_ms(self) -> float:
        """From the first import to the first result."""
        return self.import_ms + self.load_ms + self.first_result_ms


class _Start(msgspec.Struct, frozen=True):
    """What one process says."""

    import_ms: float
    load_ms: float
    first_result_ms: float
    rss_mb: float | None
    peak_rss_mb: float | None
    loaded_mb: float | None


def measure_start_up(
    bundle: Path,
    cases: Sequence[str],
    processes: int,
    *,
    threads: int = 1,
    plan: bool = True,
    prepared: bool = True,
    budget: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[StartUp, ...]:
    """Starts processes, the cases in turns.

    Args:
        bundle: path of the bundle.
        cases: ``dfs``, ``static-int8`` and the like.
        processes: a case; 0 for none.
        threads: that one engine may use.
        plan: whether to use the plan measured on this machine.
        prepared: whether to run engines prepared for this machine.
        budget: of the dynamic network.
        progress: called with how far it is, 0 to 1.

    Raises:
        EnvironmentLacksError: a process did not end well.
    """
    wanted = {
        "parent": os.getpid(),
        "bundle": str(bundle),
        "threads": threads,
        "plan": plan,
        "prepared": prepared,
        "budget": budget,
    }
    starts: dict[str, list[_Start]] = {case: [] for case in cases}
    for turn in range(processes):
        for i, case in enumerate(cases):
            if progress is not None:
                progress((turn * len(cases) + i) / (processes * len(cases)))
            starts[case].append(_start({**wanted, "case": case}))
    return tuple(
        StartUp(
            name=case,
            processes=processes,
            import_ms=float(np.median([start.import_ms for start in found])),
            load_ms=float(np.median([start.load_ms for start in found])),
            first_result_ms=float(np.median([start.first_result_ms for start in found])),
            rss_mb=_median(start.rss_mb for start in found),
            peak_rss_mb=_median(start.peak_rss_mb for start in found),
            loaded_mb=_median(start.loaded_mb for start in found),
        )
        for case, found in starts.items()
        if found
    )


def _start(wanted: dict[str, object]) -> _Start:
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
    return msgspec.json.decode(ran.stdout, type=_Start)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
