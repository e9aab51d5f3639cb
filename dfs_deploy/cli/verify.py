"""``dfs-deploy verify``: a bundle against the checkpoint that it was made from."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy.cli.arguments import (
    BudgetOption,
    BundleArgument,
    CheckpointOption,
    DataHelp,
    JsonOption,
    PlanOption,
    SeedOption,
    ThreadsOption,
    bundle_path,
)
from dfs_deploy.cli.console import output, percent, print_json, progress, show_table
from dfs_deploy.errors import CheckpointError, VerificationError
from dfs_deploy.extras import required

if TYPE_CHECKING:
    from dfs_deploy.bundle import Bundle
    from dfs_deploy.exporters import Comparison
    from dfs_deploy.models import DFSNetwork


MAX_TOP1_DROP = 0.003
MIN_ROUTE_AGREEMENT = 0.98
MAX_COMPUTATION_CHANGE = 1.0
_ROUNDING = 1e-9


def missed_bars(
    result: Comparison,
    max_top1_drop: float = MAX_TOP1_DROP,
    min_route_agreement: float = MIN_ROUTE_AGREEMENT,
    max_computation_change: float = MAX_COMPUTATION_CHANGE,
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
    if not math.isfinite(result.max_abs_logit_error):
        missed.append("a logit is NaN or infinite")
    return missed


def verify(
    checkpoint: CheckpointOption,
    data: Annotated[Path, typer.Option("--data", help=DataHelp)],
    bundle: BundleArgument = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Images to draw.", show_default="all")] = None,
    max_top1_drop: Annotated[
        float, typer.Option(help="Bar: share of right answers that may be lost; 0.003 is 0.3 points.")
    ] = MAX_TOP1_DROP,
    min_route_agreement: Annotated[
        float, typer.Option(help="Bar: share of block decisions that must agree.")
    ] = MIN_ROUTE_AGREEMENT,
    max_computation_change: Annotated[
        float, typer.Option(help="Bar: change of the computation percentage, in points.")
    ] = MAX_COMPUTATION_CHANGE,
    budget: BudgetOption = None,
    threads: ThreadsOption = 1,
    plan: PlanOption = True,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Measure accuracy and routing against the PyTorch reference; fail below the bars."""
    with required():
        from dfs_deploy.checkpoints import load_checkpoint
        from dfs_deploy.exporters import compare
    from dfs_deploy.datasets import load_dataset
    from dfs_deploy.runtimes import Runtime

    opened = Runtime(bundle_path(bundle), threads=threads, plan=plan, budget=budget)
    with opened as runtime, progress(quiet=json) as report:
        loaded = load_checkpoint(checkpoint, runtime.options)
        if loaded.network.architecture != runtime.bundle.architecture:
            raise CheckpointError(
                f"{checkpoint} is another network than {runtime.bundle.path} was made from:"
                f" {loaded.network.architecture}, expected {runtime.bundle.architecture}; give the bundle's own"
            )
        _check_policy(checkpoint, loaded.network, runtime.bundle)
        drawn = load_dataset(data, split="test", size=runtime.input.shape[1:])
        drawn = drawn.labelled_for(runtime.bundle.architecture.classes, runtime.input.class_names)
        if samples is not None:
            drawn = drawn.subset(samples, seed)
        result = compare(runtime, loaded.network, drawn.images, drawn.labels, partial(report, "comparing"))
    failures = missed_bars(result, max_top1_drop, min_route_agreement, max_computation_change)
    sound = math.isfinite(result.max_abs_logit_error)
    if json:
        print_json(
            {
                "samples": result.samples,
                "top1_reference": result.top1_reference,
                "top1_bundle": result.top1_bundle,
                "route_agreement": result.route_agreement,
                "computation_percentage_reference": result.computation_percentage_reference,
                "computation_percentage_bundle": result.computation_percentage_bundle,
                "max_abs_logit_error": result.max_abs_logit_error if sound else None,
                "passed": not failures,
            }
        )
    else:
        show_table(
            f"{drawn.name}, {result.samples} images" + ("" if budget is None else f", budget {budget:g}"),
            ["", "reference", "bundle"],
            [
                ["top-1", percent(result.top1_reference), percent(result.top1_bundle)],
                [
                    "computation",
                    f"{result.computation_percentage_reference:.2f} %",
                    f"{result.computation_percentage_bundle:.2f} %",
                ],
            ],
        )
        worst = min(range(len(result.block_agreement)), key=result.block_agreement.__getitem__, default=None)
        console = output()
        console.print(f"routes agree on {percent(result.route_agreement)} of block decisions", end="")
        console.print(
            "" if worst is None else f", least at block {worst + 1} ({percent(result.block_agreement[worst])})"
        )
        console.print(f"greatest difference of a logit: {result.max_abs_logit_error:.3g} (large where a path differs)")
        console.print("PASSED" if not failures else f"FAILED: {'; '.join(failures)}")
    if failures:
        raise VerificationError("; ".join(failures) + "; calibrate on more data, or export with more precise --targets")


def _check_policy(checkpoint: Path, network: DFSNetwork, bundle: Bundle) -> None:
    names = None if network.policy is None else [network.options[choice].name for choice in network.policy]
    if names != bundle.manifest.policy:
        seen, expected = (",".join(policy) if policy else "a gate" for policy in (names, bundle.manifest.policy))
        raise CheckpointError(
            f"{checkpoint} decides by {seen}, expected {expected}, as {bundle.path} does; give the bundle's own"
        )
