"""Do two benches agree, and is a planted slowdown caught? Each run is a process of its own.

The first run is the baseline. The others are compared with it as ``dfs-deploy bench --compare`` does: those without a
slowdown must pass, those whose dynamic network is planted to take longer must fail.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import random_bundle
from dfs_deploy.bench import BenchResult, bench
from dfs_deploy.bench.baseline import compare_with_baseline, load_baseline, save_baseline
from dfs_deploy.errors import CheckFailedError
from dfs_deploy.runtimes import Result, Runtime


class SlowRuntime(Runtime):
    """A runtime of which every call takes a share longer."""

    slowdown = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Classifies, then waits on the spot."""
        clock = time.perf_counter_ns
        begin = clock()
        result = super().__call__(*args, **kwargs)
        end = clock()
        until = end + round((end - begin) * self.slowdown)
        while clock() < until:
            pass
        return result


def main() -> None:
    """Runs everything, or the one run that the parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle; a random ResNet-38 if left out")
    parser.add_argument("--runs", type=int, default=10, help="runs without a slowdown, the baseline not counted")
    parser.add_argument("--slow-runs", type=int, default=5, help="runs with one")
    parser.add_argument("--slowdown", type=float, default=0.1, help="share by which the dynamic network is slowed")
    parser.add_argument("--seconds", type=float, default=1.5, help="measured seconds per case")
    parser.add_argument("--baseline", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.baseline is not None:
        one_run(args.bundle, args.slowdown, args.seconds, args.baseline)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or random_bundle(6, Path(folder)).path
        baseline = Path(folder) / "baseline.json"
        command = [sys.executable, "-m", "benchmarks.repeatability", "--bundle", bundle, "--seconds", str(args.seconds)]
        command += ["--baseline", baseline]
        for slowdown in [0.0] * (1 + args.runs) + [args.slowdown] * args.slow_runs:
            subprocess.run([*command, "--slowdown", str(slowdown)], check=True)


def one_run(bundle: Path, slowdown: float, seconds: float, file: Path) -> None:
    """Makes the baseline if there is none, else a run that is compared with it; prints a line."""
    SlowRuntime.slowdown = slowdown
    opened = SlowRuntime if slowdown else Runtime
    result = bench(bundle, min_seconds=seconds, start_ups=0, energy_seconds=0.0, open_runtime=opened)
    if not file.exists():
        try:
            save_baseline(result, file)
        except CheckFailedError as error:
            sys.exit(str(error))
        print(f"{'baseline':<10} {ratios(result)}")
        return
    print(f"{f'+{100 * slowdown:.0f} %':<10} {ratios(result)}  {judged(result, load_baseline(file))}", flush=True)


def ratios(result: BenchResult) -> str:
    """Every ratio over the normaliser: mean, p50, p95."""
    parts = []
    for case in result.cases:
        if case.ratio is not None and case.name != case.ratio.over:
            p95 = np.nan if case.ratio.p95 is None else case.ratio.p95.value
            parts.append(f"{case.name} {case.ratio.mean.value:.3f} {case.ratio.p50.value:.3f} {p95:.3f}")
    return ", ".join(parts)


def judged(result: BenchResult, baseline: BenchResult) -> str:
    """Outcome of the comparison in words."""
    found = compare_with_baseline(result, baseline)
    regressed = [change.name for change in found.changes if change.regressed]
    valid = "" if result.valid else f"INVALID ({result.problems[0].what}) "
    return valid + (f"regressed: {', '.join(regressed)}" if regressed else "passed")


if __name__ == "__main__":
    main()
