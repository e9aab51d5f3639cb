"""Time of one step of the gate: each kind and variant, by shape and layout of the features.

Times a bound step of one sample as the dispatch loop calls it, and a step of a batch, both from Python. All cases run
in rounds in one process; a figure is the median over the rounds. Weights are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dfs_deploy.runtimes.gate import Features, Gate, GateWeights, NativeGate, NumpyGate, native_variants

SHAPES = ((16, 32, 32), (32, 16, 16), (64, 8, 8))
LAYOUTS = ("float32", "uint8")
HIDDEN, OPTIONS = 10, 4
BOUND = 1
"""Batch that stands for a bound step."""


def main() -> None:
    """Prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[64], help="batches to step, besides a bound sample")
    parser.add_argument("--rounds", type=int, default=51, help="rounds in which each case is timed")
    parser.add_argument("--milliseconds", type=float, default=2.0, help="length of one case in a round")
    parser.add_argument("--variants", action="store_true", help="every variant that runs here, not only the fastest")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    batches = [BOUND, *(batch for batch in args.batches if batch != BOUND)]
    variants = native_variants() if args.variants else native_variants()[:1]
    rows = measure(batches, variants, args.rounds, args.milliseconds / 1e3)
    gates = list(rows[0]["us"])
    if not variants:
        print("the native gate was not compiled here\n")
    print("microseconds per step of one sample, bound; of a batch, divided by its samples\n")
    print(f"{'features':>10} {'layout':>8} {'batch':>6}" + "".join(f"{name:>17}" for name in gates))
    for row in rows:
        figures = "".join(f"{row['us'][name]:>17.2f}" for name in gates)
        print(f"{'x'.join(map(str, row['shape'])):>10} {row['layout']:>8} {row['batch']:>6}" + figures)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(batches: list[int], variants: tuple[str, ...], rounds: int, seconds: float) -> list[dict]:
    """Times every case; a row has the microseconds per sample of each gate, by name."""
    rows = [
        {"shape": shape, "layout": layout, "batch": batch, "us": {}}
        for batch in batches
        for shape in SHAPES
        for layout in LAYOUTS
    ]
    cases = [
        (row, name, call, *calibrated(call, seconds))
        for row in rows
        for name, call in steps(row["shape"], row["layout"], row["batch"], variants)
    ]
    for _ in range(rounds):
        for _, _, call, count, times in cases:
            times.append(timeit.timeit(call, number=count) / count)
    for row, name, _, _, times in cases:
        row["us"][name] = statistics.median(times) / row["batch"] * 1e6
    return rows


def steps(
    shape: tuple[int, int, int], layout: str, batch: int, variants: tuple[str, ...]
) -> list[tuple[str, Callable[[], object]]]:
    """Calls that step features, one for each gate, by its name."""
    rng = np.random.default_rng(0)
    weights = random_weights(rng, shape[0])
    gates: list[tuple[str, Gate]] = [("numpy", NumpyGate(weights))]
    gates += [(f"native {variant}", NativeGate(weights, variant)) for variant in variants]
    features: Features
    if layout == "uint8":
        features = rng.integers(0, 256, (batch, *shape[1:], shape[0]), np.uint8)  # uint8 lies channels last
    else:
        features = rng.random((batch, *shape), np.float32)
    where = np.stack([np.zeros(batch, np.intp), np.arange(batch)], 1)
    calls: list[tuple[str, Callable[[], object]]] = []
    for name, gate in gates:
        gate.reset(batch)
        if batch == BOUND:
            calls.append((name, gate.bind(0, features, 1 / 255)))
        else:
            calls.append((name, lambda gate=gate: gate.step(0, [features], where, 1 / 255)))
    return calls


def calibrated(call: Callable[[], object], seconds: float) -> tuple[int, list[float]]:
    """Number of calls per round, after a warm-up, and an empty list of times."""
    timeit.timeit(call, number=10)
    once = timeit.timeit(call, number=20) / 20
    return max(1, round(seconds / once)), []


def random_weights(rng: np.random.Generator, channels: int) -> GateWeights:
    """Weights of one gate; small, so that activations do not saturate."""
    shapes = [
        (1, 4 * HIDDEN, channels),
        (1, 4 * HIDDEN),
        (4 * HIDDEN, HIDDEN),
        (OPTIONS, HIDDEN),
        (OPTIONS,),
    ]
    return GateWeights(*(rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes))


if __name__ == "__main__":
    main()
