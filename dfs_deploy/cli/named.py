"""Networks by name for the verbs that take one: built, their blocks found, and what was assumed shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfs_deploy.cli.console import output
from dfs_deploy.errors import UsageError

if TYPE_CHECKING:
    from dfs_deploy.models import Plan
    from dfs_deploy.models.named import NamedNetwork


def planned(
    network: str,
    weights: Path | None,
    weights_key: str | None,
    classes: int | None,
    image_size: str | None,
    blocks: str | None,
    block_options: Iterable[str],
) -> tuple[NamedNetwork, Plan]:
    """A network by name and the plan of its blocks, which has the network's name.

    Args:
        network: the name.
        weights: a state dict; ``None`` for random weights.
        weights_key: name of the weights to take, if it has several.
        classes: number of classes; ``None`` for the network's.
        image_size: height and width, as text; ``None`` for the network's.
        blocks: which modules are blocks, as text; ``None`` for those that are found.
        block_options: options of blocks, each as ``GLOB=LIST``.

    Raises:
        DfsDeployError: as for ``build_network`` and ``find_blocks``, or text that is none of these.
    """
    from dfs_deploy.checkpoints import build_network
    from dfs_deploy.models import find_blocks
    from dfs_deploy.models.named import chosen_modules

    if weights is None and weights_key is not None:
        raise UsageError("--weights-key is given without --weights, which it chooses from; leave it out")
    made = build_network(network, weights, classes, image_size, weights_key)
    wanted = None if blocks is None else chosen_modules(made.net, blocks)
    plan = replace(find_blocks(made.net, made.example, wanted), network=network)
    for given in block_options:
        glob, equals, names = given.partition("=")
        if not equals or not glob or not names:
            raise UsageError(f"--block {given!r}, expected GLOB=LIST, as in 'layer1.*=skip,full'")
        plan[glob].options = names
    return made, plan


def show_plan(plan: Plan, notes: Iterable[str]) -> None:
    """Prints a plan, and a line for each note."""
    console = output()
    for line in str(plan).splitlines():
        console.print(line)
    for note in notes:
        console.print(f"note: {note}")
