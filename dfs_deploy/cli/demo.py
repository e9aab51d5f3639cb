"""``dfs-deploy demo``: the main job from end to end, on a checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import dfs_deploy
from dfs_deploy.cli.arguments import JsonOption
from dfs_deploy.cli.bench_report import show_bench
from dfs_deploy.cli.console import output, percent, print_json, progress
from dfs_deploy.cli.process import command
from dfs_deploy.errors import EnvironmentLacksError, VerificationError
from dfs_deploy.system.libraries import required

CHECKPOINT = "digits.pt"

_KEYS = ("samples", "top1_reference", "top1_bundle", "route_agreement", "computation_percentage_bundle")
"""Keys of ``verify --json`` that ``demo --json`` has, too."""


def demo(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Bundle to write.", show_default="digits.dfs")] = None,
    min_seconds: Annotated[
        float, typer.Option(metavar="S", min=0.01, help="Measured seconds per case, on average.")
    ] = 2.0,
    json: JsonOption = False,
) -> None:
    """Export, verify and bench a small network on real scanned digits."""
    with required():
        from dfs_deploy.bench import bench
        from dfs_deploy.data.digits import load_digits
        from dfs_deploy.exporters import export
        from dfs_deploy.verify import verify

    checkpoint = find_checkpoint()
    train, test = load_digits("train"), load_digits("test")
    with progress(quiet=json) as callback:
        exported = export(checkpoint, out, calibration_data=train, progress=callback)
        bundle = exported.bundle
        found = verify(bundle, checkpoint, test, progress=callback)
        result = bench(bundle, test, min_seconds=min_seconds, start_ups=0, energy_seconds=0.0, progress=callback)
    missed = found.missed()
    if json:
        values = found.as_json()
        print_json(
            {
                "bundle": str(bundle.path),
                **{key: values[key] for key in _KEYS},
                "passed": not missed,
                "bench": result.as_json(),
            }
        )
    else:
        console = output()
        console.print(
            f"exported {checkpoint.name} to {bundle.path}: {len(exported.validation.engines)} engines validated"
        )
        console.print(
            f"verified on {found.samples} test digits: top-1 {percent(found.top1_bundle)} (PyTorch"
            f" {percent(found.top1_reference)}), route agreement {percent(found.route_agreement)}, computation"
            f" {found.computation_percentage_bundle:.1f} % of running every block in full precision"
        )
        show_bench(result)
    if missed:
        raise VerificationError("; ".join(missed))
    if not json:
        output().print(f"next: {command('inspect', bundle.path)}")


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
