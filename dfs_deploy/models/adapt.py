"""From a user's network and the plan of its blocks to a network that decides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from dfs_deploy.errors import OptionError, UsageError
from dfs_deploy.models.gate import GATES
from dfs_deploy.models.network import DFSNetwork
from dfs_deploy.models.plan import Plan, arrange
from dfs_deploy.network import GateShape
from dfs_deploy.options import FULL_BITS, Options

_LEAST_PRECISE = 8
"""What always runs does so in 8 bits if the gate may choose that, or less, for a block."""


def adapt(
    net: nn.Module,
    plan: Plan,
    options: str | Iterable[object] = "skip,8,16,full",
    gate: Literal["lstm", "stateless"] = "lstm",
    *,
    always: int | None = None,
    gate_embedding: int = 10,
    gate_hidden: int = 10,
) -> DFSNetwork:
    """Makes a network decide, for each image and each block, what to compute.

    The network shares the user's tensors: training one trains the other, and the names in the state dict are the
    user's, with ``net.`` before them. A gate stands beside them. It begins by choosing the most precise option of every
    block; its scores are so close together that training soon spreads them. If that option is ``full`` and ``always``
    is 32, the network computes what it did before; else the weights of stem and head, or of all layers, are rounded.

    Args:
        net: the user's network. Its mode, evaluation or training, becomes that of the result.
        plan: its proved blocks, as ``find_blocks`` gives them; options that it names for a block narrow these.
        options: options of a block, such as ``skip,8,16,full``.
        gate: ``lstm``, one that steps from block to block (Section 3); or ``stateless``, one for each block without
            memory (ConvNet-AIG, Veit and Belongie 2018, Section 3.1).
        always: bits of whatever always runs: stem, head, and the shortcuts of skipped blocks; 2 to 32. ``None`` for 8
            if an option has 8 bits or fewer, else for 32.
        gate_embedding: features of an LSTM's input.
        gate_hidden: hidden units of the LSTM, or of each block's gate.

    Returns:
        The network; ``model.net`` is ``net``.

    Raises:
        OptionError: options that cannot be, or that the plan does not allow.
        BlockError: a plan of another network, or of one that cannot be adapted.
        UsageError: a gate of another kind or size.
    """
    options = Options.parse(options)
    if gate not in GATES:
        raise UsageError(f"gate {gate!r}, expected {' or '.join(GATES)}")
    if always is None:
        always = 8 if any(0 < bits <= _LEAST_PRECISE for bits in options.bits) else FULL_BITS
    if not 2 <= always <= FULL_BITS:
        raise OptionError(f"stem and head in {always} bits, expected 2 to {FULL_BITS}; correct always")
    plan.check(net)
    arrangement = arrange(plan, options, always, GateShape(gate_embedding, gate_hidden, gate))
    network = DFSNetwork(net, arrangement.graphs, arrangement.architecture, options)
    if network.gate is not None:
        network.gate.prefer(sorted(range(len(options)), key=lambda k: -options[k].bits))
    some = next(iter(net.parameters()))
    return network.to(some.device).train(net.training)
