"""The verb ``prepare``: what a runtime makes of a bundle once per machine, kept in the bundle's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.errors import EngineError, EnvironmentLacksError, UsageError
from dfs_deploy.progress import Progress, silent

if TYPE_CHECKING:
    from dfs_deploy.runtimes.tensorrt.engine_cache import Prepared as BuiltEngines


@dataclass(frozen=True)
class Prepared:
    """What is ready for a bundle on this machine.

    Attributes:
        runtime: name of the runtime.
        folder: folder in which engines are kept; ``None`` if the bundle's own engines run.
        made: whether any engine was made now, rather than found.
        reason: reason why the bundle's own engines run; empty if prepared ones do.
        channel_block: channels that lie together in float32 features; 1 for the plain layout.
        built: details of TensorRT's engines; ``None`` for another runtime.
    """

    runtime: str
    folder: Path | None
    made: bool
    reason: str = ""
    channel_block: int = 1
    built: BuiltEngines | None = None


def prepare(
    bundle: str | Path | Bundle,
    *,
    runtime: str = "onnxruntime",
    workspace_mib: int | None = None,
    batch: int | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Makes what a runtime needs once per machine, and keeps it; what is there and fits is kept as it is.

    Args:
        bundle: a bundle, or its path.
        runtime: ``onnxruntime`` for engines in its blocked layout for this CPU, ``tensorrt`` for engines for this GPU.
        workspace_mib: device memory in MiB that one layer may use; only for TensorRT.
        batch: largest batch that an engine takes at once; ``None`` for 1; only for TensorRT.
        cache_dir: folder of the caches; ``None`` for ``$DFS_DEPLOY_CACHE``, or the one beside the bundle.
        progress: callback of the progress.

    Raises:
        UsageError: an unknown runtime, or an argument that it does not have.
        BundleError: the bundle cannot be read, or has no engines for the runtime.
        EngineError: an engine cannot be made.
        EnvironmentLacksError: a library or a GPU is missing, or nothing can be kept.
    """
    if runtime not in ("onnxruntime", "tensorrt"):
        raise UsageError(f"nothing to prepare for the runtime {runtime!r}, expected onnxruntime or tensorrt")
    opened = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    cache = Cache(opened, cache_dir)
    if runtime == "tensorrt":
        from dfs_deploy.runtimes.tensorrt.engine_cache import BuildSettings
        from dfs_deploy.runtimes.tensorrt.engine_cache import prepare as build

        built = build(opened, BuildSettings(1 if batch is None else batch, workspace_mib), progress, cache)
        return Prepared(runtime, built.folder, made=bool(built.built), built=built)
    if workspace_mib is not None or batch is not None:
        raise UsageError(
            f"workspace and batch have no effect for the runtime {runtime}; leave them out, or name tensorrt"
        )
    from dfs_deploy.runtimes.onnxruntime.prepared import prepare_engines

    engines = prepare_engines(opened, progress, cache)
    if engines.failed:
        raise EngineError(
            f"engines could not be prepared, so the bundle's own run: {engines.reason}; use --no-prepared"
        )
    if engines.channel_block > 1 and engines.folder is None:
        raise EnvironmentLacksError(
            f"the prepared engines cannot be kept ({engines.reason}); make the folder writable, name another with"
            " --cache-dir, or leave them to each start, which holds them in memory"
        )
    return Prepared(runtime, engines.folder, engines.made, engines.reason, engines.channel_block)
