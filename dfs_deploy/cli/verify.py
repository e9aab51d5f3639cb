"""``dfs-deploy verify``: a bundle against the checkpoint that it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from dfs_deploy.cli.console import output, percent, print_json, progress, show_table
from dfs_deploy.cli.outputs import check_writable
from dfs_deploy.errors import CheckpointError, SavedResultError, UsageError, VerificationError
from dfs_deploy.io.text import one_line
from dfs_deploy.system.extras import required
from dfs_deploy.thresholds import (
    VERIFY_MAX_COMPUTATION_CHANGE,
    VERIFY_MAX_TOP1_DROP,
    VERIFY_MIN_ROUTE_AGREEMENT,
)

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.exporters import Comparison
    from dfs_deploy.exporters.validation import EngineDeviation
    from dfs_deploy.models import DFSNetwork
    from dfs_deploy.verify import EngineError, Verification

_ROUNDING = 1e-9


def missed_bars(
    result: Comparison | Verification,
    max_top1_drop: float = VERIFY_MAX_TOP1_DROP,
    min_route_agreement: float = VERIFY_MIN_ROUTE_AGREEMENT,
    max_computation_change: float = VERIFY_MAX_COMPUTATION_CHANGE,
) -> list[str]:
    """What a bundle misses, a line each; just reaching a bar is enough.

    Args:
        result: of the comparison with the reference.
        max_top1_drop: share of right answers that may be lost, 0 to 1.
        min_route_agreement: share of block decisions that must agree, 0 to 1.
        max_computation_change: of the computation percentage, in points.
    """
    missed = []
    drop = (result.top1_reference or 0.0) - (result.top1_bundle or 0.0)
    change = abs(result.computation_percentage_bundle - result.computation_percentage_reference)
    if not drop <= max_top1_drop + _ROUNDING:
        missed.append(f"top-1 fell by {100 * drop:.2f} points, at most {100 * max_top1_drop:.2f} allowed")
    if not result.route_agreement >= min_route_agreement - _ROUNDING:
        wanted = percent(min_route_agreement)
        missed.append(f"routes agree on {percent(result.route_agreement)}, at least {wanted} wanted")
    if not change <= max_computation_change + _ROUNDING:
        missed.append(f"computation changed by {change:.2f} points, at most {max_computation_change:.2f} allowed")
    if result.max_abs_logit_error is None or not math.isfinite(result.max_abs_logit_error):
        missed.append("a logit is NaN or infinite")
    return missed


_OF_A_RUN = (
    *("checkpoint", "data", "weights_key", "samples", "per_block", "save", "budget", "threads", "plan", "prepared"),
    *("seed", "cache_dir"),
)
"""Options that mean nothing if nothing is run."""

PER_BLOCK_SAMPLES = 256
"""Images that the errors of engines are measured on, at the most."""


def verify(
    context: typer.Context,
    bundle: BundleArgument = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The trained checkpoint that it was made from.", show_default="none"),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help=DataHelp, show_default="none")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Images to draw.", show_default="all")] = None,
    max_top1_drop: Annotated[
        float, typer.Option(help="Bar: share of right answers that may be lost; 0.003 is 0.3 points.")
    ] = VERIFY_MAX_TOP1_DROP,
    min_route_agreement: Annotated[
        float, typer.Option(help="Bar: share of block decisions that must agree.")
    ] = VERIFY_MIN_ROUTE_AGREEMENT,
    max_computation_change: Annotated[
        float, typer.Option(help="Bar: change of the computation percentage, in points.")
    ] = VERIFY_MAX_COMPUTATION_CHANGE,
    per_block: Annotated[
        bool, typer.Option("--per-block", help="Tell the error of each engine as well, by block and option.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Keep the result in a file, to judge it again.", show_default="none")
    ] = None,
    result: Annotated[
        Path | None,
        typer.Option(help="Judge a kept result by the bars, without running anything.", show_default="none"),
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
    """Measure accuracy and routing against the PyTorch reference; fail below the bars."""
    _check_bar("--max-top1-drop", max_top1_drop, 1, "a share")
    _check_bar("--min-route-agreement", min_route_agreement, 1, "a share")
    _check_bar("--max-computation-change", max_computation_change, 100, "points")
    if result is not None:
        refuse_given(context, "beside --result, which runs nothing; leave one of them out", *_OF_A_RUN)
        found = _kept(result, bundle)
    else:
        if checkpoint is None or data is None:
            missing = "--checkpoint" if checkpoint is None else "--data"
            raise UsageError(f"no {missing}; give the checkpoint and the data to compare on, or a kept --result")
        check_writable(save)
        found = _compared(
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
            quiet=json,
        )
    failures = missed_bars(found, max_top1_drop, min_route_agreement, max_computation_change)
    if json:
        print_json(_contract(found, passed=not failures))
    else:
        _show(found, failures)
    if save is not None:
        from dfs_deploy.verify import save_verification

        save_verification(save, found)
    if failures:
        raise VerificationError("; ".join(failures) + "; calibrate on more data, or export with more precise --targets")


def _check_bar(flag: str, value: float, greatest: float, unit: str) -> None:
    if not 0 <= value <= greatest:  # NaN as well
        raise UsageError(f"{flag} {value:g}: expected {unit}, 0 to {greatest:g}")


def _compared(
    path: Path,
    checkpoint: Path,
    data: Path,
    *,
    weights_key: str | None,
    samples: int | None,
    per_block: bool,
    budget: float | None,
    threads: int | None,
    plan: bool,
    prepared: bool,
    seed: int,
    quiet: bool,
) -> Verification:
    """Runs bundle and reference on the same images."""
    with required():
        from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint
        from dfs_deploy.exporters import compare
        from dfs_deploy.exporters.validation import compare_engines
        from dfs_deploy.models.threads import torch_threads
    import dfs_deploy
    from dfs_deploy.data import open_dataset
    from dfs_deploy.io.files import sha256_file
    from dfs_deploy.io.json_files import LONGEST_NAME
    from dfs_deploy.io.text import one_line
    from dfs_deploy.runtimes import Runtime
    from dfs_deploy.verify import Verification, finite

    opened = Runtime(path, threads=threads, plan=plan, prepared=prepared, budget=budget)
    with opened as runtime, torch_threads(threads), progress(quiet=quiet) as report:
        source = runtime.bundle.manifest.source
        # What the file does not say was settled at export; only which network in it is compared matters here.
        facts = CheckpointFacts(weights_key or source.weights_key, input_size=runtime.input.shape[1:])
        loaded = load_checkpoint(checkpoint, runtime.options, facts)
        if loaded.network.architecture != runtime.bundle.architecture:
            raise CheckpointError(
                f"{checkpoint} is another network than {runtime.bundle.path} was made from:"
                f" {loaded.network.architecture.beside(runtime.bundle.architecture)}; give the bundle's own"
            )
        _check_policy(checkpoint, loaded.network, runtime.bundle)
        images_of = open_dataset(data, size=runtime.input.shape[1:])
        images_of = images_of.labelled_for(runtime.bundle.architecture.classes, runtime.input.class_names)
        drawn = images_of.load() if samples is None else images_of.subset(samples, seed).load()
        result = compare(runtime, loaded.network, drawn.images, drawn.labels, report)
        deviations = None
        if per_block:
            report("comparing engines", 0.0)
            images = runtime.input.normalize(drawn.images[:PER_BLOCK_SAMPLES])
            deviations = compare_engines(runtime.bundle, loaded.network, images)
        return Verification(
            version=dfs_deploy.__version__,
            bundle=one_line(runtime.bundle.name, LONGEST_NAME),
            bundle_digest=runtime.bundle.digest,
            checkpoint=one_line(checkpoint.name, LONGEST_NAME),
            checkpoint_sha256=sha256_file(checkpoint),
            data=one_line(drawn.name, LONGEST_NAME),
            seed=seed,
            budget=budget,
            samples=result.samples,
            top1_reference=result.top1_reference,
            top1_bundle=result.top1_bundle,
            route_agreement=result.route_agreement,
            block_agreement=list(result.block_agreement),
            computation_percentage_reference=result.computation_percentage_reference,
            computation_percentage_bundle=result.computation_percentage_bundle,
            max_abs_logit_error=finite(result.max_abs_logit_error),
            per_block=None if deviations is None else list(_engine_errors(deviations)),
            notes=[*drawn.notes, *result.suspicions],
            assumptions=list(dict.fromkeys((*source.assumptions, *loaded.notes))),
        )


def _check_policy(checkpoint: Path, network: DFSNetwork, bundle: Bundle) -> None:
    names = None if network.policy is None else [network.options[choice].name for choice in network.policy]
    if names != bundle.manifest.policy:
        seen, expected = (",".join(policy) if policy else "a gate" for policy in (names, bundle.manifest.policy))
        raise CheckpointError(
            f"{checkpoint} decides by {seen}, expected {expected}, as {bundle.path} does; give the bundle's own"
        )


def _engine_errors(deviations: Sequence[EngineDeviation]) -> Iterator[EngineError]:
    from dfs_deploy.exporters.validation import TOLERANCES
    from dfs_deploy.verify import EngineError, finite

    for found in deviations:
        if found.block is not None and found.option is not None:
            yield EngineError(
                block=found.block,
                option=found.option,
                precision=found.precision,
                runtime=found.runtime,
                layout=found.layout,
                max_relative=finite(found.max_relative),
                rms_relative=finite(found.rms_relative),
                tolerance=TOLERANCES[found.precision],
                passed=found.passed,
            )


def _kept(result: Path, bundle: Path | None) -> Verification:
    """A kept result; where a bundle is named as well, it must be of that one."""
    from dfs_deploy.verify import load_verification

    found = load_verification(result)
    if bundle is not None:
        from dfs_deploy.bundle import Bundle

        digest = Bundle(bundle_path(bundle)).digest
        if digest != found.bundle_digest:
            raise SavedResultError(
                f"{result} is of a bundle with digest {found.bundle_digest[:12]}, {bundle} has {digest[:12]};"
                " verify that bundle"
            )
    return found


def _contract(found: Verification, passed: bool) -> dict[str, Any]:
    """The object of ``verify --json``."""
    value: dict[str, Any] = {
        "samples": found.samples,
        "top1_reference": found.top1_reference,
        "top1_bundle": found.top1_bundle,
        "route_agreement": found.route_agreement,
        "computation_percentage_reference": found.computation_percentage_reference,
        "computation_percentage_bundle": found.computation_percentage_bundle,
        "max_abs_logit_error": found.max_abs_logit_error,
        "passed": passed,
        "bundle_digest": found.bundle_digest,
        "checkpoint_sha256": found.checkpoint_sha256,
        "notes": found.notes,
        "assumptions": found.assumptions,
    }
    if found.per_block is not None:
        value["per_block"] = found.as_json()["per_block"]
    return value


def _show(found: Verification, failures: Sequence[str]) -> None:
    """Prints a result as a person reads it."""
    for assumption in found.assumptions:
        output().print(f"assumed: {one_line(assumption)}")
    show_table(
        f"{found.data}, {found.samples} images" + ("" if found.budget is None else f", budget {found.budget:g}"),
        ["", "reference", "bundle"],
        [
            ["top-1", percent(found.top1_reference), percent(found.top1_bundle)],
            [
                "computation",
                f"{found.computation_percentage_reference:.2f} %",
                f"{found.computation_percentage_bundle:.2f} %",
            ],
        ],
    )
    if found.per_block is not None:
        _show_per_block(found.per_block)
    worst = min(range(len(found.block_agreement)), key=found.block_agreement.__getitem__, default=None)
    least = "" if worst is None else f", least at block {worst + 1} ({percent(found.block_agreement[worst])})"
    error = "not finite" if found.max_abs_logit_error is None else f"{found.max_abs_logit_error:.3g}"
    console = output()
    console.print(f"routes agree on {percent(found.route_agreement)} of block decisions{least}")
    console.print(f"greatest difference of a logit: {error} (large where a path differs)")
    console.print(
        f"bundle {found.bundle} {found.bundle_digest[:12]}, {found.checkpoint} {found.checkpoint_sha256[:12]}"
    )
    for note in found.notes:
        console.print(f"warning: {one_line(note)}")
    console.print("PASSED" if not failures else f"FAILED: {'; '.join(failures)}")


def _show_per_block(errors: Sequence[EngineError]) -> None:
    """Prints a row a block and a column an engine, the worst of its variants in each cell."""
    columns: dict[tuple[str, str, str], None] = {}
    cells: dict[tuple[int, tuple[str, str, str]], EngineError] = {}
    for error in errors:
        column = (error.option, error.precision, error.runtime)
        columns[column] = None
        before = cells.get((error.block, column))
        if before is None or _severity(error) > _severity(before):
            cells[error.block, column] = error
    several = len({runtime for _, _, runtime in columns}) > 1

    def text(error: EngineError | None) -> str:
        if error is None:
            return "-"
        return ("not finite" if error.judged is None else f"{error.judged:.1e}") + ("" if error.passed else " !")

    heads = [f"{option} {precision}" + (f" {runtime}" if several else "") for option, precision, runtime in columns]
    show_table(
        "error of engines against the reference (INT8: rms, others: greatest; ! beyond export's tolerance)",
        ["block", *heads],
        [
            [str(block), *(text(cells.get((block, column))) for column in columns)]
            for block in sorted({error.block for error in errors})
        ],
    )


def _severity(error: EngineError) -> float:
    return math.inf if error.judged is None else error.judged
