"""``dfs-deploy export``: from a checkpoint to a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfs_deploy.cli.arguments import (
    ClassNamesOption,
    DataHelp,
    InputSizeOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ResizeOption,
    SeedOption,
    StdOption,
    TorchThreadsOption,
    WeightsKeyOption,
)
from dfs_deploy.cli.console import (
    output,
    percent,
    print_json,
    progress,
    show_accuracy_budget,
    show_assumptions,
    show_budgets,
    show_notes,
    show_table,
)
from dfs_deploy.system.cpu import AUTO, WEIGHT_BITS, WORDS, WeightBits, target_named
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.bundle.manifest import Manifest
    from dfs_deploy.exporters import Exported


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A trained DFS or SkipNet checkpoint: .pt, .pth.tar, .safetensors."),
    ],
    targets: Annotated[str, typer.Option(metavar="LIST", help="Precisions to make engines in.")] = "fp32,fp16,int8",
    runtime: Annotated[
        str, typer.Option(metavar="LIST", help="Runtimes to make engines for: onnxruntime, tensorrt.")
    ] = "onnxruntime",
    calibration_data: Annotated[Path | None, typer.Option(metavar="PATH", help=DataHelp)] = None,
    calibration_method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Source of INT8 ranges: checkpoint, minmax, percentile, entropy or mse.",
            show_default="minmax with data",
        ),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of images to draw from the data.")
    ] = 1024,
    options: Annotated[
        str | None, typer.Option(metavar="LIST", help="Options that the gate chooses from, as in skip,8,16,full.")
    ] = None,
    weights_key: WeightsKeyOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    class_names: ClassNamesOption = None,
    input_size: InputSizeOption = None,
    resize: ResizeOption = None,
    interpolation: InterpolationOption = None,
    budgets: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Shares of computation that can be held at run time, as in 0.1,0.2,0.4."),
    ] = None,
    max_top1_drop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Top-1 that may be lost, as in 0.005: the cheapest budget that keeps to it becomes the default.",
        ),
    ] = None,
    accuracy_data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Labelled images that training has not seen, for --max-top1-drop.",
            show_default="the calibration data",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Bundle or checkpoint that --max-top1-drop compares with, such as the fine-tuned static twin.",
            show_default="this network, every block at its most precise or as trained",
        ),
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Latency table of bench --save-costs: --max-top1-drop then lowers time.",
            show_default="computation",
        ),
    ] = None,
    target_cpu: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Kind of CPU that will run INT8: vnni or avx2 (x86 with or without VNNI), arm, or auto for this one.",
        ),
    ] = AUTO,
    weight_bits: Annotated[
        int | None,
        typer.Option(metavar="N", min=7, max=8, help="Bits of INT8 weights.", show_default="7 for avx2, 8 for others"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Bundle to write.", show_default="NAME.dfs, after the checkpoint or its run"),
    ] = None,
    single_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write also the whole network as one ONNX file, with If operators."),
    ] = None,
    threads: TorchThreadsOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Split a checkpoint into a gate and block engines, calibrate them, and prove that they compute the same."""
    with required():
        from dfs_deploy.checkpoints import CheckpointFacts
        from dfs_deploy.exporters import export as run_export

    facts = CheckpointFacts(weights_key, mean, std, class_names, input_size, resize, interpolation)
    with progress(quiet=json) as callback:
        exported = run_export(
            checkpoint,
            out,
            targets=targets,
            runtimes=runtime,
            options=options,
            facts=facts,
            calibration_data=calibration_data,
            calibration_method=calibration_method,
            calibration_samples=calibration_samples,
            target_cpu=target_cpu,
            weight_bits=cast("WeightBits | None", weight_bits),
            seed=seed,
            budgets=budgets,
            max_top1_drop=max_top1_drop,
            accuracy_data=accuracy_data,
            reference=reference,
            cost=cost,
            single_file=single_file,
            threads=threads,
            progress=callback,
        )
    if json:
        print_json(exported.as_json())
    else:
        _show(exported, target_cpu)


def _show(exported: Exported, target_cpu: str) -> None:
    bundle, manifest, measured = exported.bundle, exported.bundle.manifest, exported.comparison
    console = output()
    console.print(f"{manifest.architecture.name} ({manifest.source.format}), options {bundle.options}")
    show_assumptions(exported.assumptions)
    show_notes(exported.notes)
    for served in manifest.substitutions:
        console.print(f"option {served.option} falls back to {served.served_by}: {served.reason}")
    for line in _calibration(manifest, target_cpu):
        console.print(line)
    rows = []
    for precision in manifest.targets:
        worst = exported.validation.worst(precision)
        files = sum(engine.precision == precision for engine in exported.validation.engines)
        rows.append([precision, str(files), "-" if worst is None else f"{worst:.2g}"])
    show_table("engines against the reference", ["precision", "files", "greatest error"], rows)
    if "int8" in manifest.targets and not any(e.precision == "int8" for e in exported.validation.engines):
        made = "only the static baseline is INT8"
        if manifest.calibration is None:
            made = "nothing is INT8 (a static baseline needs --calibration-data)"
        console.print(f"int8: {made}, because no option of this network is of 8 bits or fewer")
    for line in exported.kept_in_float:
        console.print(f"int8: {line}")
    if measured is not None:
        console.print(
            f"on {measured.samples} calibration images: top-1 {percent(measured.top1_bundle)}"
            f" (reference {percent(measured.top1_reference)}), route agreement {percent(measured.route_agreement)},"
            f" computation {measured.computation_percentage_bundle:.2f} %"
        )
        show_notes(measured.suspicions)
    if manifest.accuracy_budget is not None:
        show_accuracy_budget(manifest.accuracy_budget)
    if manifest.budgets:
        show_budgets(manifest.budgets)
    if exported.single_file is not None:
        size = exported.single_file.stat().st_size
        console.print(f"single file: {exported.single_file} ({size / 1e6:.1f} MB), the same paths as the runtime")
    if exported.replaced is not None:
        console.print(f"replaced: the bundle that stood there was made from another checkpoint, {exported.replaced}")
    console.print(f"PASSED: {len(manifest.files)} files, {bundle.size / 1e6:.1f} MB -> {bundle.path}")


def _calibration(manifest: Manifest, target_cpu: str) -> Iterator[str]:
    """Where the ranges come from, and which CPU the weights were made for."""
    record = manifest.calibration
    if record is None:
        return
    if record.data:
        yield f"calibrated by {record.method} on {record.samples} images ({record.data})"
    else:
        yield "ranges from the checkpoint, no data"
    if "onnxruntime" in manifest.runtimes:
        kind = target_named(target_cpu)
        known = "the kind of this CPU; --target-cpu names another" if target_cpu == AUTO else "as asked for"
        suits = record.weight_bits == WEIGHT_BITS[kind]
        why = f"for {WORDS[kind]} ({known})" if suits else f"as asked for; {WORDS[kind]} wants {WEIGHT_BITS[kind]}"
        yield f"INT8 weights of {record.weight_bits} bits, {why}"
    for block, option in sorted({(r.block, r.option) for r in record.ranges if r.source == "reached"}):
        if option != "static":
            what = "skip" if option == "always" else f"option {option}"
            yield f"  block {block}, {what}: no image was sent there, so ranges were measured on all that reached it"
