"""Time from the imports to a first result, and resident memory, of the network and its static engines.

Every start is a process of its own; files are in the system's cache. The figures are medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RESULTS = 20
"""Results before memory is looked at."""


def main() -> None:
    """Starts the processes and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--processes", type=int, default=3, help="processes per case")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start is not None:
        print(json.dumps(start(args.bundle, args.start)))
        return
    from dfs_deploy.bundle import Bundle

    cases = ["dfs", *(f"static-{p}" for p in Bundle(args.bundle).manifest.runtimes["onnxruntime"].static)]
    command = [sys.executable, "-m", "benchmarks.start_up", str(args.bundle), "--start"]
    for case in cases:
        found = [
            json.loads(subprocess.run([*command, case], capture_output=True, check=True).stdout)
            for _ in range(args.processes)
        ]
        print(case, ", ".join(f"{key} {median(each[key] for each in found):.1f}" for key in found[0]))


def start(path: Path, case: str) -> dict[str, float]:
    """Loads one case in this process; times in ms, resident memory in MB of 10**6 bytes."""
    clock = time.perf_counter
    begin = clock()
    import numpy as np

    from dfs_deploy.bundle import Bundle
    from dfs_deploy.runtimes import Runtime
    from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

    imported, before = clock(), resident_mb()
    bundle = Bundle(path)
    statics = {f"static-{p}": p for p in bundle.manifest.runtimes["onnxruntime"].static}
    with StaticEngine(bundle, statics[case], 1) if case in statics else Runtime(bundle) as network:
        loaded = clock()
        images = np.zeros((1, *bundle.input.shape), np.float32)
        network(images)
        first = clock()
        for _ in range(RESULTS - 1):
            network(images)
        after = resident_mb()
    return {
        "import ms": 1e3 * (imported - begin),
        "load ms": 1e3 * (loaded - imported),
        "first ms": 1e3 * (first - loaded),
        "RSS MB": after,
        "beyond the imports MB": after - before,
    }


def resident_mb() -> float:
    """Resident memory, from ``/proc``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
