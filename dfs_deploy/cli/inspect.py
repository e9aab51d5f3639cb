"""``dfs-deploy inspect``: what a bundle holds, and what would run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfs_deploy.cli.arguments import BundleArgument, CacheOption, JsonOption, bundle_path
from dfs_deploy.cli.console import (
    engine_choice,
    output,
    percent,
    print_json,
    show_accuracy_budget,
    show_budgets,
    show_table,
)
from dfs_deploy.errors import EnvironmentLacksError
from dfs_deploy.io.text import one_line
from dfs_deploy.system.cpu import WORDS

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle


def inspect(bundle: BundleArgument = None, cache_dir: CacheOption = None, json: JsonOption = False) -> None:
    """Check a bundle's digests and show its engines, its calibration and what was measured at export."""
    import msgspec

    from dfs_deploy.bundle import Bundle
    from dfs_deploy.bundle.weights import distinct_tensors

    opened = Bundle(bundle_path(bundle))
    tensors = distinct_tensors(opened)
    found = {"onnxruntime": _onnxruntime_here, "tensorrt": _tensorrt_here}
    here = {name: found[name](opened) for name in found if name in opened.manifest.runtimes}
    if json:
        document = {
            "path": str(opened.path),
            "digest": opened.digest,
            "bytes": opened.size,
            "tensor_bytes": tensors,
            "foreign": opened.foreign,
            "cpu_mismatch": opened.cpu_mismatch,
            "here": here,
            "manifest": opened.manifest,
        }
        print_json(msgspec.to_builtins(document))
    else:
        _show_origin(opened, tensors)
        _show_here(opened, here)
        _show_engines(opened)
        _show_measured(opened)


def _onnxruntime_here(bundle: Bundle) -> dict[str, Any]:
    """Facts about the runtime that would run the bundle; no engine is prepared for it."""
    from dfs_deploy.runtimes import Runtime
    from dfs_deploy.runtimes.onnxruntime.prepared import load_prepared

    kept = load_prepared(bundle) is not None
    with Runtime(bundle, "onnxruntime", prepared=kept) as runtime:
        facts = {**runtime.description, "substitutions": list(runtime.substitutions)}
    if not kept:
        facts["layout"] = "not prepared yet: the first load does, or dfs-deploy prepare"
    return facts


def _tensorrt_here(bundle: Bundle) -> dict[str, Any]:
    """Facts about the engines that are ready for TensorRT; none is built or loaded for it."""
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


def _show_origin(bundle: Bundle, tensors: int) -> None:
    console, manifest = output(), bundle.manifest
    shape, producer = "x".join(map(str, manifest.input.shape)), manifest.producer
    libraries = ", ".join(f"{name} {producer[name]}" for name in ("torch", "onnx", "onnxruntime") if name in producer)
    decided, blocks = len(bundle.architecture.decided(bundle.options)), bundle.architecture.gated_blocks
    others = "" if decided == blocks else f", {blocks - decided} that always run as they are"
    console.print(f"{bundle.path}: {manifest.architecture.name}, {decided} gated blocks{others}")
    console.print(
        f"  made from    {manifest.source.file} ({manifest.source.format}) by dfs-deploy"
        f" {producer.get('version', '?')} ({libraries})"
    )
    console.print(f"  input        {shape}, mean {manifest.input.mean}, std {manifest.input.std}")
    console.print(f"  images       {bundle.input.geometry}")
    console.print(f"  options      {', '.join(f'{o.name} (cost {o.cost:g})' for o in manifest.options)}")
    if manifest.policy is not None:
        console.print(f"  policy       {', '.join(manifest.policy)}: static, by gated block; no gate")
    console.print(f"  targets      {', '.join(manifest.targets)}")
    size = f"{bundle.size / 1e6:.2f} MB for {tensors / 1e6:.2f} MB of distinct tensors"
    console.print(f"  files        {len(manifest.files)}, {size}, every SHA-256 as recorded")
    if bundle.foreign:
        console.print(f"  foreign      {', '.join(map(one_line, bundle.foreign))}: not in the manifest, never read")
    if manifest.calibration is not None:
        record = manifest.calibration
        known = f"{record.method}, {record.samples} images of {record.data}"
        source = known if record.data else "ranges from the checkpoint, no data"
        suits = "" if record.target_cpu is None else f" for {WORDS[record.target_cpu]}"
        console.print(f"  calibration  {source}, {record.weight_bits}-bit weights{suits}")
    if bundle.cpu_mismatch is not None:
        console.print(f"  this CPU     {bundle.cpu_mismatch}")
    for served in manifest.substitutions:
        console.print(
            f"  at export    option {served.option} runs {served.served_by} instead of {served.wanted}: {served.reason}"
        )


def _show_here(bundle: Bundle, here: dict[str, dict[str, Any]]) -> None:
    console = output()
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
                f" engine choice: {engine_choice(facts['plan'])}, layout: {facts['layout']}"
            )
        for substitution in facts.get("substitutions", ()):
            runs = f"option {substitution.option} runs {substitution.served_by} instead of {substitution.wanted}"
            where = f"{len(substitution.blocks)} of {bundle.architecture.gated_blocks} blocks"
            console.print(f"               {runs} at {where}: {substitution.reason}")


def _show_engines(bundle: Bundle) -> None:
    blocks = next(iter(bundle.manifest.runtimes.values())).blocks
    rows = [
        [str(block.index), name, " then ".join(e.precision for e in engines), str(sum(len(e.files) for e in engines))]
        for block in blocks
        for name, engines in block.options.items()
    ]
    show_table("engines", ["block", "option", "precision", "files"], rows)


def _show_measured(bundle: Bundle) -> None:
    found = bundle.manifest.accuracy
    if found is not None:
        output().print(
            f"measured at export on {found.samples} images of {found.data}: top-1 {percent(found.top1_bundle)}"
            f" (reference {percent(found.top1_reference)}), route agreement {percent(found.route_agreement)},"
            f" computation {found.computation_percentage_bundle:.2f} %"
        )
        statics = ", ".join(f"{precision} {percent(share)}" for precision, share in found.top1_static.items())
        output().print(f"static baselines on the same images: {statics}")
        rows = [[str(i + 1), *(percent(share, 1) for share in shares)] for i, shares in enumerate(found.option_share)]
        show_table("share of images by option", ["block", *bundle.options.names], rows)
    if bundle.manifest.accuracy_budget is not None:
        show_accuracy_budget(bundle.manifest.accuracy_budget)
    if bundle.manifest.budgets:
        show_budgets(bundle.manifest.budgets)
