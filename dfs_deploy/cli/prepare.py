"""``dfs-deploy prepare``: what a runtime makes of a bundle once per machine, kept in its cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from dfs_deploy.cli.arguments import BundleArgument, CacheOption, JsonOption, bundle_path
from dfs_deploy.cli.console import output, print_json, progress


def prepare(
    bundle: BundleArgument = None,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="Runtime to prepare for: onnxruntime, tensorrt.")
    ] = "onnxruntime",
    workspace: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="MIB", help="Device memory that one layer may use (only tensorrt).", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Largest batch that an engine takes at once (only tensorrt).", show_default="1"
        ),
    ] = None,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Make what a runtime needs once per machine, and keep it.

    ONNX Runtime: engines in its blocked layout for this CPU. TensorRT: engines for this GPU, built one at a time. What
    is there already and fits is kept. It lies beside the bundle, unless that cannot be written or --cache-dir says
    otherwise.
    """
    from dfs_deploy.runtimes.preparation import prepare as run

    path = bundle_path(bundle)
    with progress(quiet=json) as callback:
        found = run(path, runtime=runtime, workspace_mib=workspace, batch=batch, progress=callback)
    built, folder = found.built, None if found.folder is None else str(found.folder)
    if json:
        values: dict[str, Any] = {"folder": folder, "together": found.channel_block, "reason": found.reason}
        if built is None:
            print_json({**values, "made": found.made})
        else:
            print_json({**asdict(built), "folder": folder, "batch": batch or 1, "workspace_mib": workspace})
        return
    console = output()
    if built is not None:
        device = f"{built.device.name}, compute capability {built.device.compute_capability}"
        batches = "batch 1" + (f" to {batch}" if batch is not None and batch > 1 else "")
        console.print(f"{folder}: TensorRT {built.tensorrt} on {device}")
        console.print(f"  {len(built.built)} engine(s) built in {built.seconds:.0f} s, {built.kept} kept, {batches}")
        if built.weakly_typed:
            console.print(
                f"  weakly typed, because TensorRT refused them strongly typed: {', '.join(built.weakly_typed)}"
            )
    elif folder is None:
        console.print(f"{path}: the bundle's own engines run here ({found.reason}); there is nothing to prepare")
    else:
        done = "made, and compared with their plain form" if found.made else "there already"
        console.print(f"{folder}: engines {done}; features lie in blocks of {found.channel_block} channels")
