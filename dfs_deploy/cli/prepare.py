"""``dfs-deploy prepare``: what a runtime makes of a bundle once on each machine, kept in its cache."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy.cli.arguments import BundleArgument, CacheOption, JsonOption, bundle_path
from dfs_deploy.cli.console import output, print_json, progress
from dfs_deploy.errors import EngineError, EnvironmentLacksError, UsageError

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle

RUNTIMES = ("onnxruntime", "tensorrt")


def prepare(
    bundle: BundleArgument = None,
    runtime: Annotated[str, typer.Option(help="The runtime to prepare for: onnxruntime, tensorrt.")] = "onnxruntime",
    workspace: Annotated[
        int | None,
        typer.Option(min=1, metavar="MIB", help="tensorrt: device memory that one layer may use.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="tensorrt: the largest batch that engines take at once; else 1.", show_default=False),
    ] = None,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Make what a runtime wants once on each machine, and keep it.

    ONNX Runtime: engines in its blocked layout for this CPU. TensorRT: engines for this GPU, built one at a time.
    What is there already and fits is kept. It lies beside the bundle, unless that cannot be written or --cache-dir says
    otherwise.
    """
    from dfs_deploy.bundle import Bundle

    if runtime not in RUNTIMES:
        raise UsageError(f"nothing to prepare for the runtime {runtime!r}, expected {' or '.join(RUNTIMES)}")
    opened = Bundle(bundle_path(bundle))
    if runtime == "tensorrt":
        _prepare_tensorrt(opened, workspace, batch or 1, json)
    elif workspace is not None or batch is not None:
        raise UsageError(f"--workspace and --batch are of no use to the runtime {runtime}; give --runtime tensorrt")
    else:
        _prepare_onnxruntime(opened, json)


def _prepare_onnxruntime(opened: Bundle, json: bool) -> None:
    from dfs_deploy.runtimes.onnxruntime.prepared import whole_prepared

    with progress(quiet=json) as report:
        made, whole = whole_prepared(opened, partial(report, "preparing"))
    if made.failed:
        raise EngineError(f"engines could not be prepared, so the bundle's own run: {made.reason}; use --no-prepared")
    if made.together > 1 and made.folder is None:
        raise EnvironmentLacksError(
            f"the prepared engines cannot be kept ({made.reason}); make the folder writable, name another with"
            " --cache-dir, or leave them to each start, which holds them in memory"
        )
    if json:
        folder = None if made.folder is None else str(made.folder)
        anew = folder is not None and not whole
        print_json({"folder": folder, "together": made.together, "reason": made.reason, "made": anew})
        return
    if made.folder is None:
        output().print(f"{opened.path}: the bundle's own engines run here ({made.reason}); there is nothing to prepare")
        return
    done = "there already" if whole else "made, and held against their plain form"
    output().print(f"{made.folder}: engines {done}; features lie in blocks of {made.together} channels")


def _prepare_tensorrt(opened: Bundle, workspace: int | None, batch: int, json: bool) -> None:
    from dfs_deploy.runtimes.tensorrt.engine_cache import BuildSettings
    from dfs_deploy.runtimes.tensorrt.engine_cache import prepare as build

    with progress(quiet=json) as report:
        prepared = build(opened, BuildSettings(batch, workspace), report)
    if json:
        print_json({**asdict(prepared), "folder": str(prepared.folder), "batch": batch, "workspace_mib": workspace})
        return
    console = output()
    console.print(
        f"{prepared.folder}: TensorRT {prepared.tensorrt} on {prepared.device.name}, compute capability"
        f" {prepared.device.compute_capability}"
    )
    console.print(
        f"  {len(prepared.built)} engine(s) built in {prepared.seconds:.0f} s, {prepared.kept} kept, batch 1"
        + (f" to {batch}" if batch > 1 else "")
    )
    if prepared.weakly_typed:
        console.print(f"  weakly typed, since TensorRT did not take them otherwise: {', '.join(prepared.weakly_typed)}")
