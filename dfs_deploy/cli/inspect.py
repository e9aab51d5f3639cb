"""``dfs-deploy inspect``: what a bundle holds, and what would run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfs_deploy.cli.arguments import BundleArgument, CacheOption, JsonOption, bundle_path
from dfs_deploy.cli.budgets import show_budgets
from dfs_deploy.cli.console import output, percent, print_json, show_table
from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.io.text import one_line

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle


def inspect(bundle: BundleArgument = None, cache_dir: CacheOption = None, json: JsonOption = False) -> None:
    """Check a bundle's digests and show its engines, its calibration and what was measured at export."""
    import msgspec

    from dfs_deploy.bundle import Bundle
    from dfs_deploy.runtimes import Runtime

    opened = Bundle(bundle_path(bundle))
    manifest = opened.manifest
    here: dict[str, dict[str, Any]] = {}
    if "onnxruntime" in manifest.runtimes:
        from dfs_deploy.runtimes.onnxruntime.prepared import load_prepared

        kept = load_prepared(opened) is not None  # what is not kept is not made just to be looked at
        with Runtime(opened, "onnxruntime", prepared=kept) as runtime:
            here["onnxruntime"] = {**runtime.description, "substitutions": list(runtime.substitutions)}
        if not kept:
            here["onnxruntime"]["layout"] = "not prepared yet: the first load does, or dfs-deploy prepare"
    if "tensorrt" in manifest.runtimes:
        here["tensorrt"] = _tensorrt_here(opened)
    if json:
        document = {
            "path": str(opened.path),
            "digest": opened.digest,
            "bytes": opened.size,
            "foreign": opened.foreign,
            "here": here,
        }
        print_json({**msgspec.to_builtins(document), "manifest": msgspec.to_builtins(manifest)})
        return
    console = output()
    shape = "x".join(map(str, manifest.input.shape))
    console.print(f"{opened.path}: {manifest.architecture.name}, {opened.architecture.gated_blocks} gated blocks")
    console.print(f"  made from    {manifest.source.file} ({manifest.source.format}) by {_versions(manifest.producer)}")
    console.print(f"  input        {shape}, mean {manifest.input.mean}, std {manifest.input.std}")
    console.print(f"  options      {', '.join(f'{o.name} (cost {o.cost:g})' for o in manifest.options)}")
    if manifest.policy is not None:
        console.print(f"  policy       {', '.join(manifest.policy)}: static, by gated block; no gate")
    console.print(f"  targets      {', '.join(manifest.targets)}")
    console.print(f"  files        {len(manifest.files)}, {opened.size / 1e6:.2f} MB, every SHA-256 as recorded")
    if opened.foreign:
        console.print(f"  foreign      {', '.join(map(one_line, opened.foreign))}: not in the manifest, never read")
    if manifest.calibration is not None:
        record = manifest.calibration
        known = f"{record.method}, {record.samples} images of {record.data}"
        source = known if record.data else "ranges from the checkpoint, no data"
        console.print(f"  calibration  {source}, {record.weight_bits}-bit weights")
    for served in manifest.substitutions:
        console.print(f"  at export    option {served.option}: {served.served_by} for {served.wanted}, {served.reason}")
    for name, facts in here.items():
        if "lacks" in facts:
            console.print(f"  not here     {name}: {facts['lacks']}")
        elif name == "tensorrt":
            console.print(
                f"  runs here    {name} {facts['version']} on {facts['device']}, {facts['engines_ready']} of"
                f" {facts['engines']} engines ready (dfs-deploy prepare --runtime tensorrt builds the others)"
            )
        else:
            console.print(
                f"  runs here    {name} {facts['version']}, {facts['threads']} thread(s), {facts['gate']} gate,"
                f" plan: {facts['plan']}, layout: {facts['layout']}"
            )
        for substitution in facts.get("substitutions", ()):
            console.print(
                f"               option {substitution.option}: {substitution.served_by} for {substitution.wanted} at"
                f" {len(substitution.blocks)} of {opened.architecture.gated_blocks} blocks, {substitution.reason}"
            )
    rows = [
        [
            str(block.index),
            name,
            " then ".join(engine.precision for engine in engines),
            str(sum(len(e.files) for e in engines)),
        ]
        for block in next(iter(manifest.runtimes.values())).blocks
        for name, engines in block.options.items()
    ]
    show_table("engines", ["block", "option", "precision", "files"], rows)
    if manifest.accuracy is not None:
        a = manifest.accuracy
        console.print(
            f"measured at export on {a.samples} images of {a.data}: top-1 {percent(a.top1_bundle)}"
            f" (reference {percent(a.top1_reference)}), route agreement {percent(a.route_agreement)},"
            f" computation {a.computation_percentage_bundle:.2f} %"
        )
        statics = ", ".join(f"{precision} {percent(share)}" for precision, share in a.top1_static.items())
        console.print(f"static baselines on the same images: {statics}")
        rows = [[str(i + 1), *(percent(share, 1) for share in shares)] for i, shares in enumerate(a.option_share)]
        show_table("share of images by option", ["block", *opened.options.names], rows)

    if manifest.budgets:
        show_budgets(manifest.budgets)


def _tensorrt_here(bundle: Bundle) -> dict[str, Any]:
    """What is ready to run in TensorRT; nothing is built or loaded for it."""
    from dfs_deploy.runtimes.tensorrt.device import device_facts
    from dfs_deploy.runtimes.tensorrt.engine_cache import EngineCache

    try:
        facts = device_facts()
        built = EngineCache(bundle, facts)
        ready, count = built.ready()
    except EnvironmentLacksError as error:
        return {"runtime": "tensorrt", "lacks": str(error)}
    return {
        "runtime": "tensorrt",
        "version": built.version,
        "device": facts.name,
        "batch": built.settings.batch,
        "engines": count,
        "engines_ready": ready,
    }


def _versions(producer: dict[str, str]) -> str:
    known = ("torch", "onnx", "onnxruntime")
    return (
        f"dfs-deploy {producer.get('version', '?')} ({', '.join(f'{k} {producer[k]}' for k in known if k in producer)})"
    )
