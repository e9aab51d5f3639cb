"""``dfs-deploy demo``: the main job from end to end, on a checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import dfs_deploy
from dfs_deploy.cli.arguments import JsonOption
from dfs_deploy.cli.bench_report import show_bench
from dfs_deploy.cli.console import output, percent, print_json, progress
from dfs_deploy.cli.next_step import command
from dfs_deploy.cli.verify import missed_bars
from dfs_deploy.errors import EnvironmentLacksError, VerificationError
from dfs_deploy.system.extras import required

CHECKPOINT = "digits.pt"


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Directory to write the bundle to.", show_default="digits.dfs")
    ] = None,
    min_seconds: Annotated[float, typer.Option(min=0.01, help="Measured seconds a case, on average.")] = 2.0,
    json: JsonOption = False,
) -> None:
    """Export, verify and bench a small network on real scanned digits."""
    with required():
        from dfs_deploy.bench import bench
        from dfs_deploy.checkpoints import load_checkpoint
        from dfs_deploy.data.digits import load_digits
        from dfs_deploy.exporters import compare, export
        from dfs_deploy.runtimes import Runtime

    source = find_checkpoint()
    train, test = load_digits("train"), load_digits("test")
    console = output()
    with progress(quiet=json) as report:
        exported = export(source, out, calibration_data=train, progress=report)
        loaded = load_checkpoint(source)
        with Runtime(exported.bundle) as runtime:
            comparison = compare(runtime, loaded.network, test.images, test.labels)
        result = bench(exported.bundle, test, min_seconds=min_seconds, start_ups=0, energy_seconds=0.0, progress=report)
    failures = missed_bars(comparison)
    if json:
        print_json(
            {
                "bundle": str(exported.bundle.path),
                "samples": comparison.samples,
                "top1_reference": comparison.top1_reference,
                "top1_bundle": comparison.top1_bundle,
                "route_agreement": comparison.route_agreement,
                "computation_percentage_bundle": comparison.computation_percentage_bundle,
                "passed": not failures,
                "bench": result.as_json(),
            }
        )
        if failures:
            raise VerificationError("; ".join(failures))
        return
    console.print(
        f"exported {source.name} to {exported.bundle.path}: {len(exported.validation.engines)} engines validated"
    )
    console.print(
        f"verified on {comparison.samples} test digits: top-1 {percent(comparison.top1_bundle)} (PyTorch"
        f" {percent(comparison.top1_reference)}), route agreement {percent(comparison.route_agreement)}, computation"
        f" {comparison.computation_percentage_bundle:.1f} % of running every block in full precision"
    )
    show_bench(result)
    if failures:
        raise VerificationError("; ".join(failures))
    console.print(f"next: {command('inspect', exported.bundle.path)}")


def find_checkpoint() -> Path:
    """The checkpoint that comes with the package, or with its source tree.

    Raises:
        EnvironmentLacksError: neither is there.
    """
    package = Path(dfs_deploy.__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / CHECKPOINT).is_file():
            return folder / CHECKPOINT
    raise EnvironmentLacksError(f"the demo's checkpoint {CHECKPOINT} is not installed; run it from a source tree")
