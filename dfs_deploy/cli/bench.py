"""``dfs-deploy bench``: latency and throughput against static networks, a verdict, and what changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy.cli.arguments import (
    AgainstOption,
    BudgetOption,
    BundlesArgument,
    CacheOption,
    DataHelp,
    JsonOption,
    PlanOption,
    PreparedOption,
    SeedOption,
    bundle_path,
    refuse_given,
)
from dfs_deploy.cli.bench_report import show_bench
from dfs_deploy.cli.console import output, print_json, progress
from dfs_deploy.errors import CheckFailedError, RegressionError
from dfs_deploy.io.files import check_files_writable
from dfs_deploy.thresholds import NOISE_BAND, VERDICT_MAX_TOP1_DROP

if TYPE_CHECKING:
    from dfs_deploy.bench.result import BenchResult


def bench(
    context: typer.Context,
    bundles: BundlesArgument = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Device to run on: cpu, cuda or jetson.")] = "cpu",
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help=DataHelp, show_default="the digits, or the bundle's own images"),
    ] = None,
    against: AgainstOption = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images per call.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads that one engine may use.", show_default="1 on a CPU"),
    ] = None,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    budget: BudgetOption = None,
    all_budgets: Annotated[
        bool, typer.Option("--all-budgets", help="Time dynamic networks also at every budget that export calibrated.")
    ] = False,
    frontier: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Draw top-1 against latency of all networks in this file, .svg or .png; needs labels."
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Most images to draw from the data; more make accuracies better known."),
    ] = 1024,
    forced: Annotated[
        bool,
        typer.Option(
            "--forced", help="Time also forced paths, on which 0 to 100 % of the blocks run, and their traces."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw the result of --forced in this file, .svg or .png.")
    ] = None,
    min_seconds: Annotated[
        float, typer.Option(metavar="S", min=0.01, help="Measured seconds per case, on average.")
    ] = 3.0,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0.01,
            help="Measured seconds per case up to which an unclear run is extended.",
            show_default="4 times --min-seconds",
        ),
    ] = None,
    min_iterations: Annotated[int, typer.Option(metavar="N", min=1, help="Fewest calls per case.")] = 200,
    start_ups: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes to start per case, for the time and memory of a start.")
    ] = 3,
    energy_seconds: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="Seconds per case in which energy is measured; 0 for none.")
    ] = 3.0,
    max_top1_drop: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Share of right answers that the verdict lets a choice lose; 0.01 is one point.",
        ),
    ] = VERDICT_MAX_TOP1_DROP,
    csv: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the cases to this CSV file as well.")] = None,
    save_baseline: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Keep this run in a file, to compare later runs with.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File that --save-baseline wrote: fail if a ratio rose beyond --noise-band."),
    ] = None,
    noise_band: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, help="Share by which a ratio may rise before --compare fails.")
    ] = NOISE_BAND,
    save_plan: Annotated[
        bool,
        typer.Option(
            "--save-plan", help="First measure which engine is fastest for each option here, and keep that choice."
        ),
    ] = False,
    save_costs: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Measure what each option costs at each block here, and write the table for train --cost.",
        ),
    ] = None,
    seed: SeedOption = 0,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Time networks, dynamic and static, interleaved on the same inputs, and say what to ship."""
    from dfs_deploy.bench import bench as bench_bundle
    from dfs_deploy.bench.csv_file import write_csv

    if device != "cpu":
        refuse_given(
            context,
            f"with --device {device}, where ONNX Runtime does not run; leave it out",
            *("against", "threads", "plan", "prepared", "save_plan", "plot", "frontier"),
            *(["start_ups"] if start_ups else []),
        )
    if not forced:
        refuse_given(context, "draws the result of --forced; add --forced, or leave it out", "plot")
    if compare is None:
        refuse_given(context, "has no effect without --compare; add --compare, or leave it out", "noise_band")
    check_files_writable(plot, frontier, csv)
    draw = dict(_figures(plot, frontier))
    with progress(quiet=json) as report:
        result = bench_bundle(
            [bundle_path(path) for path in bundles] if bundles else bundle_path(None),
            data,
            device=device,
            against=[bundle_path(path) for path in against or ()],
            batch=batch,
            threads=threads,
            plan=plan,
            prepared=prepared,
            budget=budget,
            all_budgets=all_budgets,
            forced=forced,
            samples=samples,
            labelled=frontier is not None,
            seed=seed,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            min_iterations=min_iterations,
            max_top1_drop=max_top1_drop,
            start_ups=start_ups,
            energy_seconds=energy_seconds,
            compare=compare,
            noise_band=noise_band,
            save_baseline=save_baseline,
            save_plan=save_plan,
            save_costs=save_costs,
            progress=report,
        )
    if json:
        print_json(result.as_json())
    else:
        show_bench(result)
    written = list(result.kept)
    for figure, write in draw.items():
        write(result)
        written.append(str(figure))
    if csv is not None:
        write_csv(result, csv)
        written.append(str(csv))
    if not json:
        for file in written:
            output().print(f"wrote {file}")
    if result.comparison is not None and result.comparison.failures:
        raise RegressionError("; ".join(result.comparison.failures))
    asked = {"engine choice": save_plan, "table of costs": save_costs, "baseline": save_baseline}
    unkept = {kind: file for kind, file in asked.items() if file}
    if unkept and not result.valid:
        problem, files = result.problems[0], [str(file) for file in unkept.values() if isinstance(file, Path)]
        raise CheckFailedError(
            f"an INVALID run is no {' and no '.join(unkept)}: {problem.what}; {problem.remedy}; not written:"
            f" {', '.join(files) or 'the engine choice'}"
        )


def _figures(plot: Path | None, frontier: Path | None) -> Iterator[tuple[Path, Callable[[BenchResult], None]]]:
    """Files of figures that are asked for, with the function that draws each."""
    if plot is not None:
        from dfs_deploy.report.forced_figure import forced_figure
        from dfs_deploy.report.style import figure_writer

        yield plot, figure_writer(plot, forced_figure)
    if frontier is not None:
        from dfs_deploy.report.frontier_figure import frontier_figure
        from dfs_deploy.report.style import figure_writer

        yield frontier, figure_writer(frontier, frontier_figure)
