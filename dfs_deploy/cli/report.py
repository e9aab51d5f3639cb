"""``dfs-deploy report``: one page that shows others what bundles do here, and the figures of training runs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dfs_deploy
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
    check_writable,
    refuse_given,
)
from dfs_deploy.cli.console import output, percent, print_json, progress, show_table
from dfs_deploy.errors import UsageError
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.report import BundleReport


_PAGES = (".html", ".htm")

_OF_A_BENCH = ("against", "min_seconds", "min_iterations")
_OF_BUNDLES = ("html", "data", "bench", "samples", "examples", "threads", "plan", "prepared", "seed", *_OF_A_BENCH)
"""Options that mean nothing where only training runs are named."""


def report(
    context: typer.Context,
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE|RUN]...",
            help="NAME.dfs directories, the one in the current directory if none; folders or metrics logs of train.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="The page to write.", show_default="none")] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for the figures and tables of the training runs, as SVG, PNG and JSON."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help=DataHelp, show_default="images carried by the bundle")] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(help="A file of bench --json for a bundle, instead of timing it now.", show_default="none"),
    ] = None,
    against: AgainstOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Images to draw from the data.")] = 1024,
    examples: Annotated[
        int, typer.Option(min=0, max=64, help="Inputs to show at the easy and the hard end; 0 keeps pictures out.")
    ] = 6,
    min_seconds: Annotated[float, typer.Option(min=0.01, help="Of the bench: measured seconds per case.")] = 2.0,
    min_iterations: Annotated[int, typer.Option(min=1, help="Of the bench: calls of a case, at least.")] = 200,
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    seed: SeedOption = 0,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Write one page on accuracy, latency, decisions and errors of bundles; or the figures of training runs."""
    from dfs_deploy.bench.candidates import check_rivals
    from dfs_deploy.bench.result import load_bench
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.data import open_dataset
    from dfs_deploy.report import Report, as_json, report_bundle
    from dfs_deploy.report.bench_file import match_benches
    from dfs_deploy.report.build import distinct_names
    from dfs_deploy.report.runs import is_run

    if html is not None and html.suffix.lower() not in _PAGES:
        raise UsageError(
            f"{html} ends in {html.suffix or 'nothing'!r}, expected {' or '.join(_PAGES)}: a page is HTML, and a"
            " browser prints it as PDF; name it so"
        )
    runs = [path for path in bundles or () if is_run(path) and _is_record(path)]
    bundles = [path for path in bundles or () if path not in runs]
    if runs and not bundles:
        refuse_given(context, "with training runs alone, expected a bundle, which it is about; name one", *_OF_BUNDLES)
    drawn_runs = _draw(runs, figures, json)
    if runs and not bundles:
        if json:
            print_json(drawn_runs)
        return
    if html is None and not json:
        raise UsageError("nothing to make; name the page with --html out.html, or ask for the figures with --json")
    check_writable(html)
    if html is not None:
        with required():
            from dfs_deploy.report import render_page
    opened = [Bundle(path) for path in map(bundle_path, bundles)] or [Bundle(bundle_path(None))]
    rivals = [Bundle(bundle_path(path)) for path in against or []]
    for bundle in opened:
        check_rivals(bundle, rivals)
    benches = match_benches([bundle.digest for bundle in opened], [(path, load_bench(path)) for path in bench or []])
    if None not in benches:
        refuse_given(context, "with a --bench of every bundle: nothing is timed; leave it out", *_OF_A_BENCH)
    drawn = []
    for bundle in opened:
        loaded = None if data is None else open_dataset(data, size=bundle.input.shape[1:])
        drawn.append(
            None if loaded is None else loaded.labelled_for(bundle.architecture.classes, bundle.input.class_names)
        )
    with progress(quiet=json) as tell:
        told = [
            report_bundle(
                bundle,
                dataset,
                timed,
                against=rivals,
                samples=samples,
                examples=examples,
                threads=threads,
                plan=plan,
                prepared=prepared,
                seed=seed,
                min_s=min_seconds,
                min_iterations=min_iterations,
                progress=tell,
            )
            for bundle, dataset, timed in zip(opened, drawn, benches, strict=True)
        ]
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    result = Report(dfs_deploy.__version__, now, distinct_names(tuple(told)))
    if json:
        print_json(as_json(result) | ({"training": drawn_runs} if runs else {}))
    else:
        for made in result.bundles:
            _show(made)
    if html is not None:
        from dfs_deploy.io.files import write_whole

        write_whole(html, render_page(result).encode())
        if not json:
            output().print(f"wrote {html}")


def _show(made: BundleReport) -> None:
    console, outcome, bench = output(), made.outcome, made.bench
    console.print(
        f"{made.facts.name}: top-1 {percent(outcome.top1)}, computation {outcome.computation_percentage:.1f} % on"
        f" {outcome.inputs} inputs ({outcome.data})"
    )
    for note in made.notes:
        console.print(f"  note: {note}")
    if bench is None:
        return
    console.print(f"  bench: median {made.frontier[0].p50_ms:.3f} ms on {bench.inputs} inputs ({bench.data})")
    for line in made.bench_differs:
        console.print(f"  note: {line}")
    for problem in bench.problems:
        console.print(f"  INVALID: {problem.what}" + (f"; {problem.remedy}" if problem.remedy else ""))
    for caveat in bench.verdict.caveats if bench.verdict is not None else ():
        console.print(f"  note: {caveat}")
    if bench.verdict is not None:
        console.print(f"  verdict: {bench.verdict.words}")


def _is_record(path: Path) -> bool:
    """Whether a path may be a run by its content; what is something else is refused as a bundle, by its kind."""
    from dfs_deploy.io.kinds import kind_of

    kind = kind_of(path)
    return kind is None or kind.role == "record"


def _draw(runs: list[Path], folder: Path | None, quiet: bool) -> dict[str, Any]:
    """Writes the figures of training runs, where a folder is named, and gives their numbers."""
    from dfs_deploy.report.figures import as_json, write_figures
    from dfs_deploy.report.runs import load_run

    if folder is not None and not runs:
        raise UsageError("--figures without a training run, expected at least one; name folders that train wrote")
    if runs and folder is None and not quiet:
        raise UsageError("training runs without --figures; name the folder for their figures, or ask for --json")
    loaded = [load_run(path) for path in runs]
    if folder is not None:
        written = write_figures(loaded, folder)
        if not quiet:
            rows = [
                [run.name, f"{run.method}-{run.model}", run.data, f"{run.percentage:.2f} %", percent(run.top1)]
                for run in loaded
            ]
            show_table("training runs", ["run", "model", "data", "computation", "top-1"], rows)
            output().print(f"wrote {len(written)} files to {folder}")
    return as_json(loaded)
