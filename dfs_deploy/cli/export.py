"""``dfs-deploy export``: from a checkpoint to a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer

from dfs_deploy.cli.arguments import (
    ClassNamesOption,
    DataHelp,
    InputSizeOption,
    JsonOption,
    MeanOption,
    SeedOption,
    StdOption,
    TorchThreadsOption,
    WeightsKeyOption,
    parse_budgets,
    parse_class_names,
    parse_numbers,
    parse_size,
)
from dfs_deploy.cli.console import (
    output,
    percent,
    print_json,
    progress,
    show_assumptions,
    show_budgets,
    show_notes,
    show_table,
)
from dfs_deploy.options import Options, parse_targets
from dfs_deploy.system.cpu import AUTO, WEIGHT_BITS, WORDS, WeightBits, target_named
from dfs_deploy.system.libraries import required


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A trained DFS or SkipNet checkpoint: .pt, .pth.tar, .safetensors.")
    ],
    targets: Annotated[str, typer.Option(help="Engine precisions to make.")] = "fp32,fp16,int8",
    runtime: Annotated[str, typer.Option(help="Runtimes to make engines for.")] = "onnxruntime",
    calibration_data: Annotated[Path | None, typer.Option(help=DataHelp)] = None,
    calibration_method: Annotated[
        str | None,
        typer.Option(help="checkpoint, minmax, percentile, entropy or mse.", show_default="minmax with data"),
    ] = None,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Images to draw from the data.")] = 1024,
    options: Annotated[str | None, typer.Option(help="What the gate chooses from, as in skip,8,16,full.")] = None,
    weights_key: WeightsKeyOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    class_names: ClassNamesOption = None,
    input_size: InputSizeOption = None,
    budgets: Annotated[
        str | None,
        typer.Option(help="Computation to be able to hold at run time, as in 0.1,0.2,0.4.", show_default="none"),
    ] = None,
    target_cpu: Annotated[
        str,
        typer.Option(help="CPU that is to run INT8: vnni or avx2 (x86 with or without VNNI), arm; auto: this one's."),
    ] = AUTO,
    weight_bits: Annotated[
        int | None,
        typer.Option(min=7, max=8, help="Bits of INT8 weights.", show_default="7 for avx2, 8 for others"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write.", show_default="<checkpoint or run>.dfs")
    ] = None,
    single_file: Annotated[
        Path | None, typer.Option(help="Write the whole network as one ONNX file too, with If operators.")
    ] = None,
    threads: TorchThreadsOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Split a checkpoint into a gate and block engines, calibrate them, and prove that they compute the same."""
    import msgspec

    with required():
        from dfs_deploy import exporters
        from dfs_deploy.checkpoints import CheckpointFacts

    facts = CheckpointFacts(
        weights_key=weights_key,
        mean=None if mean is None else parse_numbers("--mean", mean),
        std=None if std is None else parse_numbers("--std", std),
        class_names=None if class_names is None else parse_class_names(class_names),
        input_size=None if input_size is None else parse_size("--input-size", input_size),
    )
    with progress(quiet=json) as report:
        exported = exporters.export(
            checkpoint,
            out,
            targets=parse_targets(targets),
            runtimes=[name.strip() for name in runtime.split(",")],
            options=None if options is None else Options.parse(options),
            facts=facts,
            calibration_data=calibration_data,
            calibration_method=calibration_method,
            calibration_samples=calibration_samples,
            target_cpu=target_cpu,
            weight_bits=cast("WeightBits | None", weight_bits),
            seed=seed,
            budgets=None if budgets is None else parse_budgets(budgets),
            single_file=single_file,
            threads=threads,
            progress=report,
        )
    bundle, manifest = exported.bundle, exported.bundle.manifest
    engines = exported.validation.engines
    worst = {
        precision: max((e.judged for e in engines if e.precision == precision), default=None)
        for precision in manifest.targets
    }
    served = {record.option: record.served_by for record in manifest.substitutions}
    suspicions = () if exported.comparison is None else exported.comparison.suspicions
    if json:
        print_json(
            {
                "bundle": str(bundle.path),
                "digest": bundle.digest,
                "bytes": bundle.size,
                "architecture": manifest.architecture.name,
                "options": list(bundle.options.names),
                "substitutions": {record.option: record.served_by for record in manifest.substitutions},
                "assumptions": list(exported.assumptions),
                "weight_bits": None if manifest.calibration is None else manifest.calibration.weight_bits,
                "notes": [*exported.notes, *suspicions],
                "engines_validated": len(engines),
                "worst_error": worst,
                "paths_validated": exported.validation.paths,
                "budgets": msgspec.to_builtins(manifest.budgets),
                "single_file": None if exported.single_file is None else str(exported.single_file),
                "accuracy": None if exported.comparison is None else asdict(exported.comparison),
                "replaced": exported.replaced,
                "passed": True,
            }
        )
        return
    console = output()
    console.print(f"{manifest.architecture.name} ({manifest.source.format}), options {bundle.options}")
    show_assumptions(exported.assumptions)
    show_notes(exported.notes)
    for option, precision in served.items():
        console.print(f"option {option} is served by {precision}: its own precision is not among the targets")
    if manifest.calibration is not None:
        record = manifest.calibration
        unrouted = sorted(
            {(r.block, r.option) for r in record.ranges if r.source == "reached" and r.option != "static"}
        )
        if record.data:
            console.print(f"calibrated by {record.method} on {record.samples} images ({record.data})")
        else:
            console.print("ranges from the checkpoint, no data")
        if "onnxruntime" in manifest.runtimes:
            console.print(_weights(record.weight_bits, target_cpu))
        for block, option in unrouted:
            console.print(
                f"  block {block}, option {option}: the gate sent nothing, so all that reached it was measured"
            )
    rows = [
        [p, str(sum(e.precision == p for e in engines)), "-" if worst[p] is None else f"{worst[p]:.2g}"] for p in worst
    ]
    show_table("engines against the reference", ["precision", "files", "greatest error"], rows)
    if exported.comparison is not None:
        c = exported.comparison
        console.print(
            f"on {c.samples} calibration images: top-1 {percent(c.top1_bundle)}"
            f" (reference {percent(c.top1_reference)}), route agreement {percent(c.route_agreement)},"
            f" computation {c.computation_percentage_bundle:.2f} %"
        )
    show_notes(suspicions)
    if manifest.budgets:
        show_budgets(manifest.budgets)
    if exported.single_file is not None:
        size = exported.single_file.stat().st_size
        console.print(f"single file: {exported.single_file} ({size / 1e6:.1f} MB), the same paths as the runtime")
    if exported.replaced is not None:
        console.print(f"replaced: the bundle that stood there was made from another checkpoint, {exported.replaced}")
    console.print(f"PASSED: {len(manifest.files)} files, {bundle.size / 1e6:.1f} MB -> {bundle.path}")


def _weights(bits: WeightBits, asked: str) -> str:
    """What the weights of INT8 engines were made for."""
    target = target_named(asked)
    if bits != WEIGHT_BITS[target]:
        return f"INT8 weights of {bits} bits, as asked for; {WORDS[target]} wants {WEIGHT_BITS[target]}"
    known = "the kind of this CPU; --target-cpu names another" if asked == AUTO else "as asked for"
    return f"INT8 weights of {bits} bits, for {WORDS[target]} ({known})"
