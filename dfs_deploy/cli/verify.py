"""``dfs-deploy verify``: a bundle against the checkpoint that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy import thresholds
from dfs_deploy.cli.arguments import (
    BudgetOption,
    BundleArgument,
    CacheOption,
    DataHelp,
    JsonOption,
    PlanOption,
    PreparedOption,
    SeedOption,
    TorchThreadsOption,
    WeightsKeyOption,
    bundle_path,
    refuse_given,
)
from dfs_deploy.cli.console import output, percent, print_json, progress, show_assumptions, show_notes, show_table
from dfs_deploy.errors import UsageError, VerificationError
from dfs_deploy.io.files import check_files_writable

if TYPE_CHECKING:
    from dfs_deploy.verify import DeviationRecord, Verification

_KEYS = (
    *("samples", "top1_reference", "top1_bundle", "route_agreement", "computation_percentage_reference"),
    *("computation_percentage_bundle", "max_abs_logit_error", "passed", "bundle_digest", "checkpoint_sha256"),
    *("notes", "assumptions"),
)
"""Keys of ``verify --json``, in order; ``per_block`` follows if it was asked for."""

_OF_A_RUN = (
    *("checkpoint", "data", "weights_key", "samples", "per_block", "save", "budget", "threads", "plan", "prepared"),
    *("seed", "cache_dir"),
)
"""Options that have no effect if nothing is run."""


def verify(
    context: typer.Context,
    bundle: BundleArgument = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="PATH",
            help="Trained checkpoint that the bundle was made from. Required without --result.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help=f"{DataHelp} Required without --result.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of images to draw.", show_default="all")
    ] = None,
    max_top1_drop: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Threshold: share of right answers that may be lost; 0.003 is 0.3 points."),
    ] = thresholds.VERIFY_MAX_TOP1_DROP,
    min_route_agreement: Annotated[
        float, typer.Option(metavar="SHARE", help="Threshold: share of block decisions that must agree.")
    ] = thresholds.VERIFY_MIN_ROUTE_AGREEMENT,
    max_computation_change: Annotated[
        float, typer.Option(metavar="POINTS", help="Threshold: change of the computation percentage, in points.")
    ] = thresholds.VERIFY_MAX_COMPUTATION_CHANGE,
    per_block: Annotated[
        bool, typer.Option("--per-block", help="Show also the error of each engine, by block and option.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Keep the result in a file, to judge it again later.")
    ] = None,
    result: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Judge a result that --save kept by the thresholds; nothing is run."),
    ] = None,
    weights_key: WeightsKeyOption = None,
    budget: BudgetOption = None,
    threads: TorchThreadsOption = None,
    plan: PlanOption = True,
    prepared: PreparedOption = True,
    seed: SeedOption = 0,
    cache_dir: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Measure accuracy and routing against the PyTorch reference; fail below the thresholds."""
    from dfs_deploy.verify import check_thresholds, load_verification, save_verification
    from dfs_deploy.verify import verify as run

    check_thresholds(max_top1_drop, min_route_agreement, max_computation_change)
    if result is not None:
        refuse_given(context, "has no effect with --result, which runs nothing; leave one of them out", *_OF_A_RUN)
        found = load_verification(result, None if bundle is None else bundle_path(bundle))
    elif checkpoint is None or data is None:
        missing = "--checkpoint" if checkpoint is None else "--data"
        raise UsageError(f"no {missing}; give the checkpoint and the data to compare on, or a kept --result")
    else:
        check_files_writable(save)
        with progress(quiet=json) as callback:
            found = run(
                bundle_path(bundle),
                checkpoint,
                data,
                weights_key=weights_key,
                samples=samples,
                per_block=per_block,
                budget=budget,
                threads=threads,
                plan=plan,
                prepared=prepared,
                seed=seed,
                progress=callback,
            )
    missed = found.missed(max_top1_drop, min_route_agreement, max_computation_change)
    if json:
        values = found.as_json() | {"passed": not missed}
        print_json({key: values[key] for key in (*_KEYS, *(["per_block"] if found.per_block is not None else []))})
    else:
        _show(found, missed)
    if save is not None:
        save_verification(save, found)
    if missed:
        raise VerificationError("; ".join(missed) + "; calibrate on more data, or export with more precise --targets")


def _show(found: Verification, missed: Sequence[str]) -> None:
    """Prints a result for a person."""
    computation = (found.computation_percentage_reference, found.computation_percentage_bundle)
    show_assumptions(found.assumptions)
    show_table(
        f"{found.data}, {found.samples} images" + ("" if found.budget is None else f", budget {found.budget}"),
        ["", "reference", "bundle"],
        [
            ["top-1", percent(found.top1_reference), percent(found.top1_bundle)],
            ["computation", *(f"{percentage:.2f} %" for percentage in computation)],
        ],
    )
    if found.per_block is not None:
        _show_per_block(found.per_block)
    worst = min(range(len(found.block_agreement)), key=found.block_agreement.__getitem__, default=None)
    least = (
        ""
        if worst is None or found.block_agreement[worst] == 1.0
        else f"; block {worst + 1} agrees least, on {percent(found.block_agreement[worst])}"
    )
    error = "not finite" if found.max_abs_logit_error is None else f"{found.max_abs_logit_error:.3g}"
    console = output()
    console.print(f"routes agree on {percent(found.route_agreement)} of block decisions{least}")
    console.print(f"greatest difference of a logit: {error} (large if a path differs)")
    console.print(
        f"bundle {found.bundle} {found.bundle_digest[:12]}, {found.checkpoint} {found.checkpoint_sha256[:12]}"
    )
    show_notes(found.notes)
    console.print("PASSED" if not missed else f"FAILED: {'; '.join(missed)}")


def _show_per_block(deviations: Sequence[DeviationRecord]) -> None:
    """Prints one row per block and one column per engine; a cell has the worst of the engine's layouts."""
    columns = dict.fromkeys(map(_column, deviations))
    cells = {(found.block, _column(found)): found for found in sorted(deviations, key=_severity)}
    several = len({runtime for _, _, runtime in columns}) > 1
    heads = [f"{option} {precision}" + (f" {runtime}" if several else "") for option, precision, runtime in columns]
    show_table(
        "error of engines against the reference (INT8: rms, others: greatest; ! beyond export's tolerance)",
        ["block", *heads],
        [
            [str(block), *(_cell(cells.get((block, column))) for column in columns)]
            for block in sorted({found.block for found in deviations})
        ],
    )


def _column(found: DeviationRecord) -> tuple[str, str, str]:
    return found.option, found.precision, found.runtime


def _cell(found: DeviationRecord | None) -> str:
    if found is None:
        return "-"
    return ("not finite" if found.judged is None else f"{found.judged:.1e}") + ("" if found.passed else " !")


def _severity(found: DeviationRecord) -> float:
    return math.inf if found.judged is None else found.judged
