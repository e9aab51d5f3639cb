"""Two threads, one network: each thread has a clone, which shares the weights and has its own buffers.

    python examples/digits_bundle.py
    python examples/03_threads.py digits.dfs --data digits-test.npz

A ``Runtime`` belongs to one thread; used by two at once it raises an error rather than mix up their images. Engines run
outside Python's lock, so threads truly run at once on as many cores. Needs: pip install .
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dfs_deploy import Runtime, load_dataset
from dfs_deploy.errors import DfsDeployError


def classify_all(net: Runtime, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Classifies images one after the other, as they would come from a camera."""
    return np.concatenate([net(images[i : i + 1]).classes for i in range(len(images))])


def classify_in_threads(net: Runtime, images: NDArray[np.uint8], threads: int) -> NDArray[np.int64]:
    """Gives each thread a clone and its share of the images."""
    nets = [net.clone() for _ in range(threads)]
    try:
        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate(list(pool.map(classify_all, nets, np.array_split(images, threads))))
    finally:
        for clone in nets:
            clone.close()


def main() -> None:
    """Runs the same images in one thread and in several, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True, help="an .npz, a folder by class, a CIFAR folder")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    images = load_dataset(options.data).images
    with Runtime(options.bundle) as net:
        classify_all(net, images[:50])  # the first calls are slower than the rest
        start = time.perf_counter()
        alone = classify_all(net, images)
        middle = time.perf_counter()
        together = classify_in_threads(net, images, options.threads)
        end = time.perf_counter()
    print(f"1 thread:  {len(images) / (middle - start):8.1f} images/s")
    print(f"{options.threads} threads: {len(images) / (end - middle):8.1f} images/s, making the clones included")
    print(f"same classes: {'yes' if np.array_equal(alone, together) else 'no'}")


if __name__ == "__main__":
    try:
        main()
    except DfsDeployError as error:
        sys.exit(f"error: {error}")
