"""Does skipped work become skipped time? ``dfs-deploy bench --forced`` of a network with random weights.

Forces paths with 0 to 100 % of the gated blocks run, and times three things on the same images: the static network, the
straight-line trace of the same path as one engine, and the real dispatch, gates included (the protocol of Cocktailer,
Zhang et al., OSDI 2023). Times do not depend on the weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.networks import random_bundle
from dfs_deploy.bench import bench
from dfs_deploy.cli.bench_report import show_bench
from dfs_deploy.report.forced_figure import forced_figure
from dfs_deploy.report.style import figure_writer


def main() -> None:
    """Prints the tables, and writes them as JSON or a plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6, help="blocks per group: 6 is ResNet-38, 12 is ResNet-74")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured seconds per case")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the figures here, as .svg or .png")
    args = parser.parse_args()
    draw = figure_writer(args.plot, forced_figure) if args.plot else None
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(args.blocks, Path(folder))
        result = bench(bundle, forced=True, min_seconds=args.seconds, start_ups=0, energy_seconds=0.0)
    print("random weights: only times count")
    show_bench(result)
    if args.json:
        args.json.write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if draw is not None:
        draw(result)


if __name__ == "__main__":
    main()
