"""``dfs-deploy blocks``: the blocks of a network, found and proved, and what each may do."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfs_deploy.cli.arguments import (
    BlockOptionsOption,
    BlocksOption,
    ClassesOption,
    ImageSizeOption,
    JsonOption,
    NetworkOption,
    WeightsKeyOption,
    WeightsOption,
    refuse_given,
)
from dfs_deploy.cli.console import FAILED, output, print_json
from dfs_deploy.cli.named import planned, show_plan
from dfs_deploy.errors import UsageError
from dfs_deploy.options import FULL_BITS
from dfs_deploy.system.libraries import required

if TYPE_CHECKING:
    from dfs_deploy.models import DFSNetwork, Plan
    from dfs_deploy.preprocessing import InputContract


def blocks(
    context: typer.Context,
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of a network that decides, or --network.")
    ] = None,
    network: NetworkOption = None,
    weights: WeightsOption = None,
    weights_key: WeightsKeyOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    blocks: BlocksOption = None,
    block: BlockOptionsOption = None,
    options: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Options that a gate would choose from, to see which blocks it would decide about, as in skip,8,full.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find the residual blocks of a network, prove them, and show what each may do.

    A block computes after(branch(x) + shortcut(x)), and a skip leaves the branch out. Each is traced, split at its
    addition, and compared with its module on random tensors; so is the whole network. What could not be proved is
    named with the reason. The exit code is 1 if the network cannot be adapted for what lies around its blocks.
    """
    with required():
        from dfs_deploy.models import adapt

    if (checkpoint is None) == (network is None):
        raise UsageError("expected a checkpoint or --network, and not both; run: dfs-deploy blocks --help")
    if checkpoint is not None:
        unused = ("weights", "classes", "image_size", "blocks", "block", "options")
        refuse_given(context, "cannot be given with a checkpoint, which says it; leave it out", *unused)
        decided, plan, contract, notes = _of_checkpoint(checkpoint, weights_key)
    else:
        made, plan = planned(str(network), weights, weights_key, classes, image_size, blocks, block or ())
        decided, contract, notes = None, made.contract, made.notes
        if options is not None and plan.problem is None:
            decided = adapt(made.net, plan, options)
    if json:
        values = {**plan.as_json(), "input": asdict(contract), "notes": list(notes), "options": None, "decided": None}
        if decided is not None:
            values |= {"options": list(decided.options.names), "decided": _names(decided)}
        print_json(values)
    else:
        show_plan(plan, notes)
        if decided is not None:
            _show_decided(decided)
    if plan.problem is not None:
        sys.exit(FAILED)


def _of_checkpoint(path: Path, weights_key: str | None) -> tuple[DFSNetwork, Plan, InputContract, tuple[str, ...]]:
    from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint
    from dfs_deploy.models.replan import plan_of

    loaded = load_checkpoint(path, facts=CheckpointFacts(weights_key=weights_key), deployable=False)
    return loaded.network, plan_of(loaded.network), loaded.input, loaded.assumptions


def _names(network: DFSNetwork) -> list[str]:
    """Names of the blocks that the gate, or the policy, decides about."""
    decided = network.architecture.decided(network.options)
    return [block.graphs.name for block in network.blocks if block.shape.index in decided]


def _show_decided(network: DFSNetwork) -> None:
    always = network.graphs.always
    bits = "full precision" if always == FULL_BITS else f"{always} bits"
    what = "gate decides" if network.policy is None else "policy decides"
    output().print(
        f"options {network.options}: the {what} about {len(_names(network))} blocks; stem, head and skips run in {bits}"
    )
