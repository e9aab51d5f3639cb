"""Compares two bundles on the same images: accuracy, latency, and what their gates decide.

    python examples/digits_bundle.py
    dfs-deploy export examples/digits.pt --targets fp32 --out floats.dfs
    python examples/05_compare_bundles.py digits.dfs floats.dfs --data digits-test.npz

Both bundles take turns image by image, so that whatever slows the machine down meets both. Their ratio is the median
over the images, with an interval from resampling; where that holds 1, neither is faster. Needs: pip install .
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfs_deploy import Dataset, Runtime, load_dataset
from dfs_deploy.errors import DfsDeployError

RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """Two bundles on the same images; a pair holds a value of each.

    Attributes:
        right: (2, N) bool, whether the class is the label.
        latency_ms: (2, N) of one image at a time.
        computation: (2, N) in percent of every gated block run in full precision.
        paths: (N, gated blocks) option names of each; ``None`` where the numbers of blocks differ.
    """

    right: NDArray[np.bool_]
    latency_ms: NDArray[np.float64]
    computation: NDArray[np.float64]
    paths: tuple[NDArray[np.str_], NDArray[np.str_]] | None

    @property
    def same_decisions(self) -> float | None:
        """Share of block decisions in which both agree."""
        return None if self.paths is None else float(np.mean(self.paths[0] == self.paths[1]))

    def ratio(self, seed: int = 0) -> tuple[float, float, float]:
        """Latency of the second over the first: median over the images, and its interval of 95 %."""
        ratios = self.latency_ms[1] / self.latency_ms[0]
        draws = np.random.default_rng(seed).choice(ratios, (RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
        return float(np.median(ratios)), float(low), float(high)


def compare(first: Runtime, second: Runtime, data: Dataset) -> Comparison:
    """Runs every image on both, turn by turn."""
    nets = (first, second)
    for net in nets:
        for index in range(min(50, len(data))):  # the first calls are slower than the rest
            net(data.images[index : index + 1])
    shape = (2, len(data))
    right, latency, computation = np.zeros(shape, np.bool_), np.zeros(shape), np.zeros(shape)
    paths: tuple[list[NDArray[np.str_]], list[NDArray[np.str_]]] = ([], [])
    for index in range(len(data)):
        for which in (0, 1) if index % 2 else (1, 0):
            start = time.perf_counter()
            result = nets[which](data.images[index : index + 1])
            latency[which, index] = 1e3 * (time.perf_counter() - start)
            right[which, index] = result.classes[0] == data.labels[index]
            computation[which, index] = result.computation_percentage[0]
            paths[which].append(np.asarray(nets[which].options.names)[result.path[0]])
    taken = (np.stack(paths[0]), np.stack(paths[1]))
    return Comparison(right, latency, computation, taken if taken[0].shape == taken[1].shape else None)


def main() -> None:
    """Compares the two bundles and prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--data", required=True, help="an .npz, a folder by class, a CIFAR folder")
    options = parser.parse_args()

    data = load_dataset(options.data)
    with Runtime(options.first) as first, Runtime(options.second) as second:
        if first.input != second.input:
            parser.error("the bundles take different inputs, or call their classes differently; no fair comparison")
        found = compare(first, second, data)
    for name, right, latency, computation in zip(
        (options.first, options.second), found.right, found.latency_ms, found.computation, strict=True
    ):
        print(
            f"{name}: top-1 {100 * right.mean():.2f} %, p50 {np.median(latency):.3f} ms,"
            f" p95 {np.quantile(latency, 0.95):.3f} ms, computation {computation.mean():.1f} %"
        )
    a, b = found.right
    print(f"right: both {int((a & b).sum())}, first alone {int((a & ~b).sum())}, second alone {int((~a & b).sum())}")
    if found.same_decisions is not None:
        print(f"block decisions in which both agree: {100 * found.same_decisions:.2f} %")
    ratio, low, high = found.ratio()
    verdict = (
        "no difference" if low <= 1.0 <= high else "the second is slower" if ratio > 1.0 else "the second is faster"
    )
    print(f"latency, second over first: {ratio:.3f} ({low:.3f} to {high:.3f}): {verdict}")


if __name__ == "__main__":
    try:
        main()
    except DfsDeployError as error:
        sys.exit(f"error: {error}")
