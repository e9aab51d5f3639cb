"""``dfs-deploy bench``: latency and throughput, against static baselines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy.cli.arguments import (
    BundleArgument,
    DataHelp,
    JsonOption,
    PlanOption,
    SeedOption,
    ThreadsOption,
    bundle_path,
)
from dfs_deploy.cli.console import output, percent, print_json, progress, show_table

if TYPE_CHECKING:
    from dfs_deploy.bench import BenchResult


def bench(
    bundle: BundleArgument = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    data: Annotated[Path | None, typer.Option(help=DataHelp, show_default="images carried by the bundle")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    forced: Annotated[
        bool, typer.Option("--forced", help="Time forced paths too: 0 to 100 % of the blocks run.")
    ] = False,
    min_seconds: Annotated[float, typer.Option(min=0.01, help="Measured seconds a case, on average.")] = 3.0,
    min_iterations: Annotated[int, typer.Option(min=1, help="Calls a case, at least.")] = 200,
    save_plan: Annotated[
        bool,
        typer.Option("--save-plan", help="First measure which engines are fastest here, and keep that."),
    ] = False,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Time the network against static engines of the same backbone, interleaved, on the same inputs."""
    from dfs_deploy.bench import check_device, run_bench
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.datasets import load_dataset
    from dfs_deploy.runtimes.onnxruntime import plan as plans

    check_device(device)
    opened = Bundle(bundle_path(bundle))
    drawn = None
    if data is not None:
        loaded = load_dataset(data, split="test", size=opened.input.shape[1:])
        drawn = loaded.labelled_for(opened.architecture.classes, opened.input.class_names)
    with progress(quiet=json) as report:
        if save_plan:
            report("measuring a plan", 0.0)
            measured = plans.measure_plan(opened, threads, partial(report, "measuring a plan"))
            plans.save_plan(opened, threads, measured)
        result = run_bench(
            opened,
            drawn,
            device=device,
            batch=batch,
            threads=threads,
            plan=plan,
            forced=forced,
            seed=seed,
            min_s=min_seconds,
            min_iterations=min_iterations,
            progress=report,
        )
    if json:
        print_json(result.as_json())
    else:
        show_bench(result)


def show_bench(result: BenchResult) -> None:
    """Prints a bench as a table that a person understands, and says what it means."""
    console = output()
    machine = result.machine
    console.print(f"{machine.cpu}, {machine.cores} core(s), {machine.int8 or 'no 8-bit product instructions'}")
    console.print(
        f"{result.runtime['runtime']} {result.runtime['version']}, {result.threads} thread(s), {result.runtime['gate']}"
        f" gate, {result.inputs} inputs ({result.data}), seed {result.seed}"
    )
    rows = []
    for case in result.cases:
        timing = case.timing
        rows.append(
            [
                case.name,
                f"{timing.p50:.3f}",
                f"{timing.p95:.3f}",
                f"{timing.p99:.3f}",
                f"{case.throughput_per_s:,.0f}",
                percent(case.top1),
                "-" if case.computation_percentage is None else f"{case.computation_percentage:.1f} %",
                "-" if case.dispatch_efficiency is None else f"{case.dispatch_efficiency:.2f}",
            ]
        )
    columns = ["case", "p50 ms", "p95 ms", "p99 ms", "images/s", "top-1", "computation", "dispatch eff."]
    show_table(f"batch {result.cases[0].batch}, interleaved", columns, rows)
    for line in conclusions(result):
        console.print(line)


def conclusions(result: BenchResult) -> list[str]:
    """What the figures say, also where they speak for a static engine."""
    by_name = {case.name: case for case in result.cases}
    dfs = by_name["dfs"]
    lines = []
    for name in ("static-fp32", "static-fp16", "static-int8"):
        if name not in by_name:
            continue
        other = by_name[name]
        ratio = other.timing.p50 / dfs.timing.p50
        speed = f"{ratio:.2f}x faster" if ratio >= 1.0 else f"{1 / ratio:.2f}x slower"
        accuracy = ""
        if dfs.top1 is not None and other.top1 is not None:
            accuracy = f", top-1 {100 * (dfs.top1 - other.top1):+.2f} points"
        lines.append(f"dfs against {name}: {speed} at the median{accuracy}")
    if dfs.gate_us is not None and dfs.engine_ms is not None:
        lines.append(
            f"one gate step {dfs.gate_us:.1f} us; the engines alone {dfs.engine_ms:.3f} ms of {dfs.timing.p50:.3f}"
        )
    int8 = by_name.get("static-int8")
    faster = int8 is not None and int8.timing.p50 <= dfs.timing.p50
    if faster and (dfs.top1 is None or int8 is None or int8.top1 is None):
        lines.append("here the static INT8 engine is faster; give --data to see whether it is as accurate")
    elif faster and int8 is not None and int8.top1 is not None and dfs.top1 is not None and int8.top1 >= dfs.top1:
        lines.append(
            "here the static INT8 engine is faster and no less accurate on these inputs: it is the better choice"
        )
    if result.noisy:
        lines.append(f"noisy: {', '.join(result.noisy)} varied by more than 2.5 %; compare ratios, not times")
    return lines
