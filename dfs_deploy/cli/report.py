"""``dfs-deploy report``: one page that shows others what bundles do here, and the figures of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dfs_deploy.cli.arguments import (
    AgainstOption,
    CacheOption,
    DataHelp,
    JsonOption,
    PlanOption,
    PreparedOption,
    SeedOption,
    ThreadsOption,
    bundle_path,
    refuse_given,
)
from dfs_deploy.cli.console import output, percent, print_json, progress, show_table
from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import check_files_writable
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.report import BundleReport


_OF_A_BENCH = ("against", "min_seconds", "min_iterations")
_OF_BUNDLES = ("html", "data", "bench", "samples", "examples", "threads", "plan", "prepared", "seed", *_OF_A_BENCH)
"""Options that mean nothing if only training runs are named."""


def report(
    context: typer.Context,
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE|RUN",
            help="NAME.dfs directories (if left out, the only one in the current directory), or training runs: folders"
            " of train or their metrics logs.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="PATH", help="Page to write.")] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for figures and tables of the training runs, as SVG, PNG, Markdown and JSON."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help=DataHelp, show_default="the digits, or the bundle's own images"),
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="File with the output of bench --json for a bundle, which is then not timed; repeatable.",
            show_default=False,
        ),
    ] = None,
    against: AgainstOption = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Number of images to draw from the data.")] = 1024,
    examples: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=64, help="Number of easiest and of hardest inputs to show; 0 for no pictures."
        ),
    ] = 6,
    min_seconds: Annotated[
        float, typer.Option(metavar="S", min=0.01, help="Measured seconds per case of the bench.")
    ] = 2.0,
    min_iterations: Annotated[int, typer.Option(metavar="N", min=1, help="Fewest calls per case of the bench.")] = 200,
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    seed: SeedOption = 0,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Write one page on accuracy, latency, decisions and errors of bundles; or the figures of training runs."""
    from dfs_deploy.bench.result import load_bench
    from dfs_deploy.bundle import open_bundles
    from dfs_deploy.report import report as make_report

    runs = [path for path in bundles or () if _is_run(path)]
    bundles = [path for path in bundles or () if path not in runs]
    if runs and not bundles:
        refuse_given(
            context, "is about a bundle, and only training runs are named; name a bundle, or leave it out", *_OF_BUNDLES
        )
    drawn_runs = _draw(runs, figures, json)
    if runs and not bundles:
        if json:
            print_json(drawn_runs)
        return
    check_files_writable(html)
    named = open_bundles([bundle_path(path) for path in bundles] or [bundle_path(None)])
    for file in bench or ():
        load_bench(file)  # what is wrong with the files is said before what is missing
    if html is None and not json:
        raise UsageError("nothing to make; name the page with --html out.html, or ask for the figures with --json")
    if bench and len(bench) >= len(named):
        refuse_given(
            context, "has no effect with a --bench for every bundle, since nothing is timed; leave it out", *_OF_A_BENCH
        )
    with progress(quiet=json) as show:
        made = make_report(
            named,
            data=data,
            html=html,
            bench=bench or (),
            against=[bundle_path(path) for path in against or ()],
            samples=samples,
            examples=examples,
            threads=threads,
            plan=plan,
            prepared=prepared,
            seed=seed,
            min_seconds=min_seconds,
            min_iterations=min_iterations,
            progress=show,
        )
    if json:
        print_json(made.as_json() | ({"training": drawn_runs} if runs else {}))
        return
    for index, each in enumerate(made.bundles):
        _show(each, verdict=not made.together or index == 0)
    if html is not None:
        output().print(f"wrote {html}")


def _show(made: BundleReport, verdict: bool) -> None:
    """Prints what was found about a bundle, and the verdict of its bench, which several may share."""
    console, outcome, bench = output(), made.outcome, made.bench
    console.print(
        f"{made.facts.name}: top-1 {percent(outcome.top1)}, computation {outcome.computation_percentage:.1f} % on"
        f" {outcome.inputs} inputs ({outcome.data})"
    )
    for note in made.notes:
        console.print(f"  note: {note}")
    case = made.frontier[0]
    console.print(f"  bench: median of {case.name} {case.p50_ms:.3f} ms on {bench.inputs} inputs ({bench.data})")
    for line in made.bench_differs:
        console.print(f"  note: {line}")
    if not verdict:
        return
    for problem in bench.problems:
        console.print(f"  INVALID: {problem.what}" + (f"; {problem.remedy}" if problem.remedy else ""))
    for caveat in bench.verdict.caveats:
        console.print(f"  note: {caveat}")
    console.print(f"  verdict: {bench.verdict.words}")


def _is_run(path: Path) -> bool:
    """Whether a path may be a training run by its content; anything else is refused as a bundle, by its kind."""
    from dfs_deploy.io.kinds import kind_of
    from dfs_deploy.report.runs import is_run

    kind = kind_of(path)
    return is_run(path) and (kind is None or kind.role in ("record", "run"))


def _draw(runs: list[Path], folder: Path | None, quiet: bool) -> dict[str, Any]:
    """Writes the figures of training runs, if a folder is named, and gives their numbers."""
    from dfs_deploy.report.runs import load_run, runs_json

    if folder is not None and not runs:
        raise UsageError("--figures without a training run, expected at least one; name folders that train wrote")
    if runs and folder is None and not quiet:
        raise UsageError("training runs without --figures; name the folder for their figures, or ask for --json")
    loaded = [load_run(path) for path in runs]
    if folder is not None:
        with required():
            from dfs_deploy.report.figures import write_figures
        written = write_figures(loaded, folder)
        if not quiet:
            rows = [
                [run.name, f"{run.method}-{run.model}", run.data, f"{run.percentage:.2f} %", percent(run.top1)]
                for run in loaded
            ]
            show_table("training runs", ["run", "model", "data", "computation", "top-1"], rows)
            output().print(f"wrote {len(written)} files to {folder}")
    return runs_json(loaded)
