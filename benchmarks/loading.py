"""Memory and time of loading a bundle, against its static baselines in FP32 and INT8, loaded together.

Each case is loaded in a process of its own, several times in turns; a figure is the median. Memory is what the process
has to itself (USS: the private pages of /proc/self/smaps_rollup) beyond the same process with a tiny engine: at its
peak, once loaded, and after one image went through every engine, for which engines allocate buffers. Time is that of
``Runtime(bundle)`` against that of the two sessions, both with the files in the page cache.

    python -m benchmarks.loading BUNDLE.dfs --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

CASES = ("static", "dynamic", "prepared")


def main() -> None:
    """Prints the table; exits with 1 if a bar is missed that was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle with static engines in FP32 and INT8")
    parser.add_argument("--rounds", type=int, default=5, help="times that each case is loaded")
    parser.add_argument("--prepared", action="store_true", help="also with engines prepared for this CPU")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.bundle, args.case)))
        return
    cases = CASES if args.prepared else CASES[:2]
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            command = [sys.executable, "-m", "benchmarks.loading", str(args.bundle), "--case", case]
            found[case].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    figures = {
        case: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        for case, rounds in found.items()
    }
    print(f"{'':>10} {'peak':>9} {'loaded':>9} {'ran':>9} {'load':>9}")
    for case, each in figures.items():
        row = " ".join(f"{each[name] / 1e6:6.0f} MB" for name in ("peak", "loaded", "ran"))
        print(f"{case:>10} {row} {each['seconds'] * 1e3:6.0f} ms")
    for case in cases[1:]:
        ratios = ", ".join(f"{name} {figures[case][name] / figures['static'][name]:.2f}" for name in figures[case])
        print(f"{case} / static: {ratios}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(path: Path, case: str) -> dict[str, float]:
    """Loads one case in this process, and runs it once; bytes and seconds."""
    from dfs_deploy import Runtime
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.runtimes.onnxruntime.blocked import block_size
    from dfs_deploy.runtimes.onnxruntime.static import StaticEngine
    from dfs_deploy.system.memory import return_freed_memory

    block_size()  # what libraries load once
    for file in sorted(path.rglob("*")):
        if file.is_file():
            file.read_bytes()
    if case == "prepared":
        Runtime(path).close()
    image = np.zeros((1, *Bundle(path).input.shape), np.float32)
    pixels = np.zeros((1, *image.shape[2:], image.shape[1]), np.uint8)
    return_freed_memory()
    before = private_bytes()
    with Peak() as peak:
        begin = time.perf_counter()
        if case == "static":
            bundle = Bundle(path)
            engines = [StaticEngine(bundle, precision) for precision in ("fp32", "int8")]
        else:
            runtime = Runtime(path, prepared=case == "prepared")
        seconds = time.perf_counter() - begin
    loaded = private_bytes()
    if case == "static":
        for engine in engines:
            engine(image)
    else:
        blocks, options = Bundle(path).architecture.blocks[1:], list(runtime.options)
        for wanted in options:  # or what the block may run instead
            choices = [block.choices(options) for block in blocks]
            taken = [options.index(wanted if wanted in each else each[0]) for each in choices]
            runtime(pixels, path=np.array([taken]))
    return {
        "peak": peak.bytes - before,
        "loaded": loaded - before,
        "ran": private_bytes() - before,
        "seconds": seconds,
    }


class Peak:
    """Largest private memory while a block runs, looked at every few milliseconds.

    Attributes:
        bytes: the largest value seen.
    """

    def __init__(self) -> None:
        self.bytes, self._ended = private_bytes(), threading.Event()
        self._watch = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.004):
            self.bytes = max(self.bytes, private_bytes())

    def __enter__(self) -> Peak:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        self.bytes = max(self.bytes, private_bytes())


def private_bytes() -> int:
    """Memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    main()
