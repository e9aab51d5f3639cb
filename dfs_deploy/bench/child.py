"""A process that starts, loads one case and gives a first result, and says how long each took.

:mod:`dfs_deploy.bench.start_up` runs it. Only the standard library is imported before its clock runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from dfs_deploy.system.process import end_with_parent

_RESULTS = 20
"""Results before memory is looked at, the first included."""


def main() -> None:
    """Reads a JSON object with a case and what its runtime is made with from the argument, and prints another."""
    wanted = json.loads(sys.argv[1])
    end_with_parent(wanted["parent"])
    case, threads = wanted["case"], wanted["threads"]
    clock = time.perf_counter
    begin = clock()
    import numpy as np

    import dfs_deploy.system.ort  # noqa: F401 (every case needs it, so its import is told apart from loading)
    from dfs_deploy.bench.candidates import STATIC
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.runtimes import Runtime
    from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

    imported, before = clock(), _resident_mb("VmRSS")
    bundle = Bundle(wanted["bundle"])
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
