"""``dfs-deploy bench``: latency and throughput against static baselines, a verdict, and what changed since."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dfs_deploy.cli.arguments import (
    BudgetOption,
    BundleArgument,
    DataHelp,
    JsonOption,
    PlanOption,
    PreparedOption,
    SeedOption,
    ThreadsOption,
    bundle_path,
)
from dfs_deploy.cli.bench_report import show_bench, show_comparison
from dfs_deploy.cli.console import print_json, progress
from dfs_deploy.cli.outputs import check_writable
from dfs_deploy.errors import RegressionError, UsageError


def bench(
    bundle: BundleArgument = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help=DataHelp, show_default="the digits, or the bundle's own images")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    budget: BudgetOption = None,
    forced: Annotated[
        bool, typer.Option("--forced", help="Time forced paths and their traces too: 0 to 100 % of the blocks run.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Of --forced: draw it, as .svg or .png.")] = None,
    min_seconds: Annotated[float, typer.Option(min=0.01, help="Measured seconds a case, on average.")] = 3.0,
    min_iterations: Annotated[int, typer.Option(min=1, help="Calls a case, at least.")] = 200,
    start_ups: Annotated[
        int, typer.Option(min=0, help="Processes to start a case, to time a start and see its memory.")
    ] = 3,
    energy_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds a case to measure energy in; 0 for not at all.")
    ] = 3.0,
    max_top1_drop: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Verdict: share of right answers that may be lost; 0.01 is one point."),
    ] = 0.01,
    csv: Annotated[Path | None, typer.Option(help="Write the cases to this file as well.")] = None,
    save_baseline: Annotated[
        Path | None, typer.Option(help="Keep this run in a file, to compare later ones with.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A file of --save-baseline: fail where a ratio rose beyond the noise band.")
    ] = None,
    noise_band: Annotated[float, typer.Option(min=0.0, help="Of --compare: share by which a ratio may rise.")] = 0.05,
    save_plan: Annotated[
        bool,
        typer.Option("--save-plan", help="First measure which engines are fastest here, and keep that."),
    ] = False,
    save_costs: Annotated[
        Path | None,
        typer.Option(help="Measure what each option costs at each block here, and keep that in a file for train."),
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Time the network against static engines of the same backbone, interleaved, on the same inputs."""
    from dfs_deploy.bench import check_device, run_bench
    from dfs_deploy.bench.baseline import check_conditions, compare_with_baseline, conditions_before, load_baseline
    from dfs_deploy.bench.baseline import save_baseline as write_baseline
    from dfs_deploy.bench.costs import measure_costs
    from dfs_deploy.bench.csv_file import write_csv
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.costs import save_costs as write_costs
    from dfs_deploy.datasets import open_dataset
    from dfs_deploy.runtimes.onnxruntime import plan as plans
    from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, whole_prepared

    check_device(device)
    if plot is not None and not forced:
        raise UsageError("--plot without --forced, which it draws; add --forced")
    check_writable(plot, csv, save_baseline, save_costs)
    draw = None
    if plot is not None:
        from dfs_deploy.report.forced_figure import figure_writer

        draw = figure_writer(plot)
    earlier = None if compare is None else load_baseline(compare)
    opened = Bundle(bundle_path(bundle))
    drawn = None
    if data is not None:
        loaded = open_dataset(data, size=opened.input.shape[1:])
        drawn = loaded.labelled_for(opened.architecture.classes, opened.input.class_names)
    if earlier is not None:
        check_conditions(
            conditions_before(opened, drawn, device=device, batch=batch, threads=threads, budget=budget, seed=seed),
            earlier,
        )
    with progress(quiet=json) as report:
        if save_plan:
            report("measuring a plan", 0.0)
            engines = whole_prepared(opened)[0] if prepared else PLAIN
            plans.save_plan(opened, plans.measure_plan(opened, threads, partial(report, "measuring a plan"), engines))
        if save_costs is not None:
            report("measuring costs", 0.0)
            write_costs(save_costs, measure_costs(opened, threads, plan, partial(report, "measuring costs"), prepared))
        result = run_bench(
            opened,
            drawn,
            device=device,
            batch=batch,
            threads=threads,
            plan=plan,
            prepared=prepared,
            budget=budget,
            forced=forced,
            seed=seed,
            min_s=min_seconds,
            min_iterations=min_iterations,
            max_top1_drop=max_top1_drop,
            start_ups=start_ups,
            energy_s=energy_seconds,
            progress=report,
        )
    comparison = None if earlier is None else compare_with_baseline(result, earlier, noise_band)
    if json:
        compared = {} if comparison is None else {"comparison": asdict(comparison)}
        print_json(result.as_json() | compared)
    else:
        show_bench(result)
        if comparison is not None:
            show_comparison(comparison)
    if draw is not None:
        draw(result)
    if csv is not None:
        write_csv(result, csv)
    if save_baseline is not None:
        write_baseline(result, save_baseline)
    if comparison is not None and comparison.failures:
        raise RegressionError("; ".join(comparison.failures))
