"""``dfs-deploy bench``: latency and throughput against static networks, a verdict, and what changed since."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy.cli.arguments import (
    AgainstOption,
    BudgetOption,
    BundleArgument,
    CacheOption,
    DataHelp,
    JsonOption,
    PlanOption,
    PreparedOption,
    SeedOption,
    bundle_path,
    check_writable,
    refuse_given,
)
from dfs_deploy.cli.bench_report import show_bench, show_comparison
from dfs_deploy.cli.console import output, print_json, progress
from dfs_deploy.errors import CheckFailedError, RegressionError, UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.thresholds import VERDICT_MAX_TOP1_DROP

if TYPE_CHECKING:
    from dfs_deploy.bench import BenchResult
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.costs import LatencyTable


def bench(
    context: typer.Context,
    bundle: BundleArgument = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or jetson.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help=DataHelp, show_default="the digits, or the bundle's own images")
    ] = None,
    against: AgainstOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that one engine may use.", show_default="1 on a CPU")
    ] = None,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    budget: BudgetOption = None,
    all_budgets: Annotated[
        bool, typer.Option("--all-budgets", help="Time the network at every budget that was calibrated, too.")
    ] = False,
    forced: Annotated[
        bool, typer.Option("--forced", help="Time forced paths and their traces too: 0 to 100 % of the blocks run.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Of --forced: draw it, as .svg or .png.")] = None,
    min_seconds: Annotated[float, typer.Option(min=0.01, help="Measured seconds per case, on average.")] = 3.0,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=0.01, help="The same, if the run has to be extended.", show_default="4 times --min-seconds"),
    ] = None,
    min_iterations: Annotated[int, typer.Option(min=1, help="Calls of a case, at least.")] = 200,
    start_ups: Annotated[
        int, typer.Option(min=0, help="Processes to start per case, to time a start and see its memory.")
    ] = 3,
    energy_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds per case to measure energy in; 0 for not at all.")
    ] = 3.0,
    max_top1_drop: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Verdict: share of right answers that may be lost; 0.01 is one point."),
    ] = VERDICT_MAX_TOP1_DROP,
    csv: Annotated[Path | None, typer.Option(help="Write the cases to this file as well.")] = None,
    save_baseline: Annotated[
        Path | None, typer.Option(help="Keep this run in a file, to compare later ones with.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A file of --save-baseline: fail if a ratio rose beyond the noise band.")
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
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Time the network against static ones, interleaved, on the same inputs."""
    from dfs_deploy.bench import check_device, run_bench
    from dfs_deploy.bench.baseline import check_conditions, compare_with_baseline, conditions_before, load_baseline
    from dfs_deploy.bench.candidates import check_rivals
    from dfs_deploy.bench.costs import measure_costs
    from dfs_deploy.bench.csv_file import write_csv
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.data import open_dataset

    check_device(device)
    if device != "cpu":
        refuse_given(
            context,
            f"beside --device {device}, where ONNX Runtime does not run; leave it out",
            *("against", "threads", "plan", "prepared", "save_plan", "plot"),
            *(["start_ups"] if start_ups else []),
        )
    if not forced:
        refuse_given(context, "without --forced, which it draws; add --forced", "plot")
    if compare is None:
        refuse_given(context, "without --compare, which it is of; add --compare, or leave it out", "noise_band")
    if max_seconds is not None and max_seconds < min_seconds:
        raise UsageError(f"--max-seconds {max_seconds:g}, expected at least the {min_seconds:g} of --min-seconds")
    check_writable(plot, csv, save_baseline, save_costs)
    draw = None
    if plot is not None:
        from dfs_deploy.report.forced_figure import figure_writer

        draw = figure_writer(plot)
    earlier = None if compare is None else load_baseline(compare)
    opened, rivals = Bundle(bundle_path(bundle)), [Bundle(bundle_path(path)) for path in against or []]
    check_rivals(opened, rivals)
    if all_budgets and not opened.manifest.budgets:
        raise UsageError(
            f"{opened.path} was calibrated for no budget; export with --budgets, or leave --all-budgets out"
        )
    drawn = None
    if data is not None:
        loaded = open_dataset(data, size=opened.input.shape[1:])
        drawn = loaded.labelled_for(opened.architecture.classes, opened.input.class_names)
    if earlier is not None:
        check_conditions(
            conditions_before(opened, drawn, device=device, batch=batch, threads=threads, budget=budget, seed=seed),
            earlier,
        )
    undo = context.with_resource(ExitStack())  # closed when the verb ends, however it does
    with progress(quiet=json) as report:
        planned = _Plan(opened, threads or 1, prepared) if save_plan else None
        if planned is not None:
            undo.callback(planned.take_back)
            planned.measure(partial(report, "measuring a plan"))
        costs = None
        if save_costs is not None:
            report("measuring costs", 0.0)
            costs = measure_costs(opened, threads, plan, partial(report, "measuring costs"), prepared, device)
        result = run_bench(
            opened,
            drawn,
            against=rivals,
            device=device,
            batch=batch,
            threads=threads,
            plan=plan,
            prepared=prepared,
            budget=budget,
            budgets=[point.budget for point in opened.manifest.budgets] if all_budgets else (),
            forced=forced,
            seed=seed,
            min_s=min_seconds,
            max_s=max_seconds,
            min_iterations=min_iterations,
            steady=save_baseline is not None or compare is not None,
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
    written: list[Path] = []
    if draw is not None and plot is not None:
        draw(result)
        written.append(plot)
    if csv is not None:
        write_csv(result, csv)
        written.append(csv)
    refused = _keep(result, written, planned, costs, save_costs, save_baseline)
    if not refused:
        undo.pop_all()
    if not json:
        for file in written:
            output().print(f"wrote {file}")
    if comparison is not None and comparison.failures:
        raise RegressionError("; ".join(comparison.failures))
    if refused:
        raise CheckFailedError(refused)


class _Plan:
    """A plan that is put in place to be benched, and can be taken back if the run turns out INVALID.

    Args:
        bundle: bundle that it is of.
        threads: threads that one engine may use.
        prepared: whether engines prepared for this machine run.
    """

    def __init__(self, bundle: Bundle, threads: int, prepared: bool) -> None:
        from dfs_deploy.bundle.cache import Cache
        from dfs_deploy.runtimes.onnxruntime.plan import plan_file, plan_key
        from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, whole_prepared

        self._bundle, self._threads, self._cache = bundle, threads, Cache(bundle)
        self._engines = whole_prepared(bundle, None, self._cache)[0] if prepared else PLAIN
        self._name = plan_file(plan_key(bundle, threads, self._engines.together))
        self.file = self._cache.folder / self._name
        self._before = self._cache.read(self._name)

    def measure(self, report: Callable[[float], None]) -> None:
        """Measures a plan and puts it in place."""
        from dfs_deploy.runtimes.onnxruntime.plan import measure_plan, save_plan

        report(0.0)
        measured = measure_plan(self._bundle, self._threads, report, self._engines)
        self.file = save_plan(self._bundle, measured, self._cache)

    def take_back(self) -> None:
        """Puts in place what was there before, if that was changed."""
        if self._cache.read(self._name) == self._before:
            return
        if self._before is None:
            self.file.unlink(missing_ok=True)
        else:
            write_whole(self.file, self._before)


def _keep(
    result: BenchResult,
    written: list[Path],
    plan: _Plan | None,
    costs: LatencyTable | None,
    costs_file: Path | None,
    baseline_file: Path | None,
) -> str:
    """Writes what a VALID run is to leave behind, and names it in ``written``.

    Returns:
        Why nothing was kept, or nothing.
    """
    from dfs_deploy.bench.baseline import save_baseline
    from dfs_deploy.costs import save_costs

    if result.valid:
        if plan is not None:
            written.append(plan.file)
        if costs is not None and costs_file is not None:
            save_costs(costs_file, costs)
            written.append(costs_file)
        if baseline_file is not None:
            save_baseline(result, baseline_file)
            written.append(baseline_file)
        return ""
    asked = {"plan": plan and plan.file, "table of costs": costs and costs_file, "baseline": baseline_file}
    unkept = [(what, file) for what, file in asked.items() if file is not None]
    if not unkept:
        return ""
    problem = result.problems[0]
    files = ", ".join(str(file) for _, file in unkept)
    kinds = " and no ".join(what for what, _ in unkept)
    return f"an INVALID run is no {kinds}: {problem.what}; {problem.remedy}; not written: {files}"
