"""Batches of mixed paths, clones in threads, and memory: ratios of medians in one process, on random weights."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.networks import random_bundle
from dfs_deploy.bench.clock import Case, summarize, time_interleaved
from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.prepared import prepare_engines
from dfs_deploy.runtimes.onnxruntime.sessions import Call, Rebinding
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

_RESIDENT = """
import resource, sys
import numpy, onnxruntime
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = resident()
from dfs_deploy import Runtime
with Runtime(sys.argv[1]) as runtime:
    shape = runtime.input.shape
    for seed in range(20):
        runtime(numpy.random.default_rng(seed).normal(size=(1, *shape)).astype(numpy.float32))
    print(resident() - before)
"""


def main() -> None:
    """Prints one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured seconds per case")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(6, Path(folder))
        for batch in (8, 64, 256):
            measure_batch(bundle, batch, args.seconds)
        measure_clones(bundle, args.seconds)
        deep = random_bundle(12, Path(folder))
        prepare_engines(deep)  # as every process after the first finds it
        measure_memory(deep)


def measure_batch(bundle: Bundle, batch: int, seconds: float) -> None:
    """Times half of the blocks in INT8 and half skipped: each sample on another path, and all on one."""
    random = np.random.default_rng(0)
    images = random.normal(size=(batch, *bundle.input.shape)).astype(np.float32)
    gated, int8 = bundle.architecture.gated_blocks, bundle.options.names.index("8")
    mixed = np.where(random.random((batch, gated)) < 0.5, int8, 0).astype(np.uint8)
    same = np.repeat(mixed[:1], batch, 0)
    with Runtime(bundle) as runtime, StaticEngine(bundle, "int8") as static:
        engines = record_engine_calls(runtime, images, mixed)
        cases = [
            Case("static int8", lambda i: static(images)),
            Case("mixed paths", lambda i: runtime(images, path=mixed)),
            Case("one path", lambda i: runtime(images, path=same)),
        ]
        if engines:
            cases.append(Case("mixed paths, only the engines", lambda i: [call() for call in engines]))
        times = time_interleaved(cases, [0], warm_up_s=0.3, min_s=seconds * len(cases), min_iterations=10, burst=4)
    medians = {name: summarize(values).p50 for name, values in times.items()}
    static_int8 = medians.pop("static int8")
    for name, median in medians.items():
        ratio = median / static_int8
        print(f"batch {batch}, half INT8, half skipped, {name}: {ratio:.2f} of static INT8")


def record_engine_calls(runtime: Runtime, images: NDArray[np.float32], path: NDArray[np.uint8]) -> list[Call]:
    """Records the engine calls of a batch, to repeat them without gates and regrouping: the floor of its time.

    Empty if the batch runs image by image, which the dispatch benchmark covers.
    """
    calls: list[Call] = []
    run = Rebinding.__call__

    def recording(self: Rebinding, label: str, source: NDArray[Any], target: NDArray[Any]) -> None:
        calls.append(partial(run, self, label, source, target))
        run(self, label, source, target)

    with patch.object(Rebinding, "__call__", recording):
        runtime(images, path=path)
    return calls


def measure_clones(bundle: Bundle, seconds: float) -> None:
    """Measures the throughput of two clones in two threads, over that of one."""
    images = np.random.default_rng(0).normal(size=(16, 1, *bundle.input.shape)).astype(np.float32)

    def work(runtime: Runtime, counts: list[int], slot: int) -> None:
        end, done = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            runtime(images[done % len(images)])
            done += 1
        counts[slot] = done

    with Runtime(bundle) as first, first.clone() as second:
        ratios = []
        for _ in range(3):
            one, two = [0], [0, 0]
            work(first, one, 0)
            threads = [threading.Thread(target=work, args=(r, two, i)) for i, r in enumerate((first, second))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            ratios.append(sum(two) / one[0])
    print(f"two clones in two threads over one: {np.median(ratios):.2f}")


def measure_memory(bundle: Bundle) -> None:
    """Measures the memory that a loaded bundle adds to an interpreter with onnxruntime imported."""
    run = subprocess.run(
        [sys.executable, "-c", _RESIDENT, str(bundle.path)], check=True, capture_output=True, text=True
    )
    print(f"{bundle.architecture.name}, three precisions, loaded and run: {int(run.stdout) / 1024:.0f} MB")


if __name__ == "__main__":
    main()
