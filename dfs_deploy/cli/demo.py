"""``dfs-deploy demo``: the main job from end to end, on checkpoints that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

import dfs_deploy
from dfs_deploy.cli.arguments import JsonOption
from dfs_deploy.cli.bench_report import show_bench
from dfs_deploy.cli.console import output, percent, print_json, progress
from dfs_deploy.cli.process import command
from dfs_deploy.errors import EnvironmentLacksError, VerificationError
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.data.digit_scenes import DigitScenes

CHECKPOINTS = "demo"
"""Folder of the checkpoints: of the network that decides, and of its static rivals."""

CHECKPOINT = "dfs.pt"
"""Name of the network that decides; every other checkpoint beside it is a rival."""

COPIES = 4
"""Test scenes with each scan."""

CALIBRATION_SCENES = 1024
"""Scenes that each network is calibrated on."""

_KEYS = ("samples", "top1_reference", "top1_bundle", "route_agreement", "computation_percentage_bundle")
"""Keys of ``verify --json`` that ``demo --json`` has, too."""


def demo(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Bundle to write.", show_default="digits.dfs")] = None,
    min_seconds: Annotated[
        float, typer.Option(metavar="S", min=0.01, help="Measured seconds per case, on average.")
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Export, verify and bench small networks, one that decides."""
    with required():
        from dfs_deploy.bench import bench
        from dfs_deploy.bench.result import DYNAMIC
        from dfs_deploy.bundle.writing import check_writable
        from dfs_deploy.data.digit_scenes import SCENE_SIZE, load_digit_scenes
        from dfs_deploy.exporters import export
        from dfs_deploy.verify import verify

    out = out or Path("digits.dfs")
    folder = find_checkpoints()
    checkpoint = folder / CHECKPOINT
    others = sorted(file for file in folder.glob("*.pt") if file != checkpoint)
    rivals = {out.with_name(f"{out.stem}-{file.stem}.dfs"): file for file in others}
    check_writable(out)
    with progress(quiet=json) as callback:
        callback("making scenes", 0.0)
        train, test = load_digit_scenes("train").data.subset(CALIBRATION_SCENES, 0), load_digit_scenes("test", COPIES)
        exported = export(checkpoint, out, targets="fp32,int8", calibration_data=train, progress=callback)
        bundle = exported.bundle
        for path, file in rivals.items():
            export(file, path, targets="fp32,int8", calibration_data=train, progress=callback)
        found = verify(bundle, checkpoint, test.data, progress=callback)
        bundles: list[Bundle | str | Path] = [bundle, *rivals]
        result = bench(
            bundles,
            test.data,
            samples=len(test.data),
            min_seconds=min_seconds,
            start_ups=0,
            energy_seconds=0.0,
            progress=callback,
        )
    run = blocks_run(bundle, test)
    missed = found.missed()
    if json:
        values = found.as_json()
        print_json(
            {
                "bundle": str(bundle.path),
                **{key: values[key] for key in _KEYS},
                "passed": not missed,
                "rivals": list(map(str, rivals)),
                "blocks_run": run,
                "bench": result.as_json(),
            }
        )
    else:
        console = output()
        clear, hard = int((~test.hard).sum()), int(test.hard.sum())
        for line in (
            f"{clear} clear and {hard} hard test scenes of {SCENE_SIZE}x{SCENE_SIZE} pixels, made from scikit-learn's"
            " digits; a hard one is turned, pale, noisy and among scraps",
            f"exported {checkpoint.name} to {bundle.path}: {len(exported.validation.engines)} engines validated; beside"
            f" it {len(rivals)} static networks of the same training",
            f"verified on {found.samples} test scenes: top-1 {percent(found.top1_bundle)} (PyTorch"
            f" {percent(found.top1_reference)}), route agreement {percent(found.route_agreement)}",
            f"of {len(bundle.architecture.decided(bundle.options))} blocks that may be skipped, it runs"
            f" {run['clear']:.1f} for a clear scene and {run['hard']:.1f} for a hard one",
        ):
            console.print(line)
        show_bench(result)
        if result.verdict.choice not in (None, DYNAMIC):
            console.print(
                "so a static network is the better choice on these small pictures; how larger networks do:"
                " docs/results.md"
            )
    if missed:
        raise VerificationError("; ".join(missed))
    if not json:
        output().print(f"next: {command('inspect', bundle.path)}")


def blocks_run(bundle: Bundle, scenes: DigitScenes) -> dict[str, float]:
    """Mean number of decided blocks that a bundle runs for a ``clear`` and for a ``hard`` scene."""
    from dfs_deploy.runtimes import Runtime

    runs = np.array([option.bits > 0 for option in bundle.options])
    with Runtime(bundle) as net:
        counts = runs[net(scenes.data.images).path].sum(1)
    return {"clear": float(counts[~scenes.hard].mean()), "hard": float(counts[scenes.hard].mean())}


def find_checkpoints() -> Path:
    """The folder of the demo's checkpoints, in the package or in its source tree.

    Raises:
        EnvironmentLacksError: neither is there.
    """
    package = Path(dfs_deploy.__file__).parent
    for folder in (package / "examples" / CHECKPOINTS, package.parent / "examples" / CHECKPOINTS):
        if (folder / CHECKPOINT).is_file():
            return folder
    raise EnvironmentLacksError(f"the demo's folder {CHECKPOINTS} is not installed; run it from a source tree")
