"""Does skipped work become skipped time? Ratios of medians, interleaved in one process.

Forces paths with 0 to 100 % of the gated blocks run, and times three things on the same images: the static network, the
straight-line trace of that very path as one engine, and the real dispatch, gates included (the protocol of Cocktailer,
Zhang et al., OSDI 2023). Weights are random: times do not depend on them. ``--plot`` draws the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.networks import random_bundle, random_network
from benchmarks.traces import trace_path
from dfs_deploy.bench import describe_machine
from dfs_deploy.bench.candidates import FORCED_SHARES, spread_path
from dfs_deploy.bench.clock import Case, median_alone, summarize, time_interleaved
from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine


def main() -> None:
    """Prints the table, and writes it as JSON or a plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6, help="blocks a group: 6 is ResNet-38, 12 is ResNet-74")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured seconds a case")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the figures here (PNG or SVG; needs matplotlib)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(args.blocks, Path(folder))
        figures = measure(bundle, args.blocks, args.seconds)
    print(f"{figures['machine']}; {figures['network']}, random weights; one thread; {figures['gate']} gate\n")
    print(f"{'run':>5} {'at':>5} {'dispatch ms':>12} {'trace ms':>9} {'/ static':>9} {'/ trace':>8} {'efficiency':>11}")
    for row in figures["rows"]:
        print(
            f"{row['share']:>4}% {row['option']:>5} {row['dispatch_ms']:>12.3f} {row['trace_ms']:>9.3f}"
            f" {row['over_static']:>9.2f} {row['over_trace']:>8.2f} {row['efficiency']:>11.2f}"
        )
    for name in ("fp32", "int8"):
        print(f"static {name}: {figures['static_ms'][name]:.3f} ms")
    print(f"gate step: {figures['gate_us']:.2f} us")
    print(f"dispatch a block, gates and engines left out: {figures['dispatch_us_per_block']:.2f} us")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if args.plot:
        plot(figures, args.plot)


def measure(bundle: Bundle, blocks: int, seconds: float) -> dict:
    """Times every share at INT8 and FP32; each row has the ratio to the static engine of its precision."""
    images = np.random.default_rng(0).normal(size=(64, 1, *bundle.input.shape)).astype(np.float32)
    network = random_network(blocks)
    gated = bundle.architecture.gated_blocks
    options = {"int8": bundle.options.names.index("8"), "fp32": bundle.options.names.index("full")}
    with Runtime(bundle) as runtime, StaticEngine(bundle, "fp32") as fp32, StaticEngine(bundle, "int8") as int8:
        cases = [Case("static-fp32", lambda i: fp32(images[i])), Case("static-int8", lambda i: int8(images[i]))]
        paths: dict[tuple[int, str], NDArray[np.uint8]] = {}
        for share in FORCED_SHARES:
            for name, option in options.items():
                path = spread_path(share, option, gated, bundle.options)
                paths[share, name] = path
                trace = trace_path(bundle, network, path)
                whole = path[None]
                cases.append(Case(f"dispatch-{share}-{name}", lambda i, p=whole: runtime(images[i], path=p)))
                cases.append(Case(f"trace-{share}-{name}", lambda i, t=trace: t(images[i])))
        turns = {
            name: summarize(times)
            for name, times in time_interleaved(
                cases, range(len(images)), warm_up_s=0.5, min_s=seconds * len(cases), min_iterations=200
            ).items()
        }
        rows = []
        for (share, name), path in paths.items():
            alone = sum(median_alone(call) for call in runtime.engine_calls(path))
            dispatch, trace_time = turns[f"dispatch-{share}-{name}"], turns[f"trace-{share}-{name}"]
            rows.append(
                {
                    "share": share,
                    "option": name,
                    "dispatch_ms": dispatch.p50,
                    "trace_ms": trace_time.p50,
                    "engines_ms": alone,
                    "over_static": dispatch.p50 / turns[f"static-{name}"].p50,
                    "over_trace": dispatch.p50 / trace_time.p50,
                    "efficiency": alone / dispatch.p50,
                }
            )
        gate_us = 1e3 * float(np.median([median_alone(call) for call in runtime.gate_calls()]))
        left = [1e3 * (row["dispatch_ms"] - row["engines_ms"]) / gated - gate_us for row in rows]
        return {
            "machine": describe_machine().cpu,
            "network": bundle.architecture.name,
            "gate": runtime.description["gate"],
            "static_ms": {name: turns[f"static-{name}"].p50 for name in options},
            "gate_us": gate_us,
            "dispatch_us_per_block": float(np.median(left)),
            "rows": rows,
        }


def plot(figures: dict, path: Path) -> None:
    """Draws latency over the share of blocks run: dispatch, trace and static."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True)
    for axis, name in zip(axes, ("fp32", "int8"), strict=True):
        rows = [row for row in figures["rows"] if row["option"] == name]
        shares = [row["share"] for row in rows]
        axis.plot(shares, [row["dispatch_ms"] for row in rows], marker="o", label="dispatch")
        axis.plot(shares, [row["trace_ms"] for row in rows], marker="s", label="trace of the same path")
        axis.axhline(figures["static_ms"][name], color="grey", linestyle="--", label=f"static {name}")
        axis.set_xlabel("gated blocks run, %")
        axis.set_ylabel("median latency, ms")
        axis.set_ylim(bottom=0)
        axis.set_title(f"{figures['network']}, {name}")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
