"""The dynamic network: one loop over gate and blocks, and the two forwards over the same weights that must agree.

``forward`` computes every option of every block and mixes them by the gate's one-hot choice (Equation 1): it is what
training differentiates, and the oracle. ``route`` runs for each sample only what its gate chose. Both are
``DFSNetwork.unroll`` with another way to run a block, and so is every other forward over these weights.

A network may have a static *policy* instead of a gate: an option for each block, the same for every input. Uniform
bitwidths (Banner et al. 2018) and mixed precision (HAQ, Wang et al. 2019) are such networks; both forwards then run the
policy's option only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.errors import CheckpointError, OptionError
from dfs_deploy.models.backbone import Backbone, BasicBlock
from dfs_deploy.models.gate import Gate, decide
from dfs_deploy.network import Architecture
from dfs_deploy.options import Option, Options


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """Result of one forward.

    Attributes:
        logits: (N, classes) float32.
        path: (N, gated blocks) int64, the option index that each gated block ran.
        scores: (N, gated blocks, options) float32, the gate's scores before softmax; zeros if a policy decides.
        expected_cost: (N,) float32, mean cost of the options taken; see ``expected_cost``.
    """

    logits: Tensor
    path: Tensor
    scores: Tensor
    expected_cost: Tensor


class Decision(NamedTuple):
    """Decision before one gated block.

    Attributes:
        scores: (N, options) float32, before softmax; zeros if a policy decides.
        choice: (N,) int64, the option index that each sample takes.
    """

    scores: Tensor
    choice: Tensor


RunBlock = Callable[[BasicBlock, Tensor, Decision], Tensor]
"""One way to run a gated block: ``run(block, features, decision)`` maps (N, C, H, W) to (N, C', H', W')."""

BlockObserver = Callable[[int, int, Tensor, Tensor], None]
"""Called as ``observer(block, option_index, rows, features)`` with the samples that a block is about to run."""


class DFSNetwork(nn.Module):
    """A backbone and the gate that chooses, per sample and per block, one of the options.

    Args:
        architecture: shape of the network.
        options: options of a gated block, in the order of the gate's scores.
        policy: option index of each gated block, for a network without a gate; ``None`` for one with a gate.

    Raises:
        OptionError: a policy of another length, or with an option that is not there.
    """

    def __init__(self, architecture: Architecture, options: Options, policy: Sequence[int] | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.options = options
        self.policy = None if policy is None else _check_policy(policy, architecture, options)
        self.backbone = Backbone(architecture)
        self.gate = Gate(architecture, len(options)) if policy is None else None

    @property
    def blocks(self) -> list[BasicBlock]:
        """The residual blocks, in the order in which they run; the first is never gated."""
        return [block for block in self.backbone.blocks if isinstance(block, BasicBlock)]

    def with_policy(self, policy: Sequence[int], options: Options | None = None) -> DFSNetwork:
        """A copy of the backbone, in the same mode and on the same device, that follows a static policy.

        The policy holds an index into ``options``, or into the network's own, for each gated block.
        """
        device = self.backbone.head.weight.device
        static = DFSNetwork(self.architecture, options or self.options, policy).to(device).train(self.training)
        static.backbone.load_state_dict(self.backbone.state_dict())
        return static

    def options_of(self, index: int) -> tuple[Option, ...]:
        """Options of the gated block ``index``, at least 1: those that the block may run, or the policy's only."""
        if self.policy is not None:
            return (self.options[self.policy[index - 1]],)
        return self.architecture.blocks[index].choices(self.options)

    def forward(self, x: Tensor) -> NetworkOutput:
        """Computes every option of images (N, C, H, W) and mixes by the hard choice; the softmax carries the gradient.

        See Section 3.
        """
        return self.unroll(x, self._mix_options)

    @torch.no_grad()
    def route(self, x: Tensor, observer: BlockObserver | None = None) -> NetworkOutput:
        """Runs for each sample only the option that its gate chose.

        Args:
            x: (N, C, H, W) float32, normalised. N may be 1.
            observer: called with each group of samples before a gated block runs them.

        Returns:
            The output, equal to that of ``forward`` up to the order of float additions.

        Raises:
            CheckpointError: a score of the gate is NaN or infinite: the features overflowed.
        """

        def run(block: BasicBlock, features: Tensor, decision: Decision) -> Tensor:
            index = block.shape.index
            if not torch.isfinite(decision.scores).all():  # no option has the greatest score then
                raise CheckpointError(
                    f"the gate's scores after block {index - 1} are NaN or infinite on these data, expected finite"
                    " values; check the checkpoint's weights and how it was trained"
                )
            return self.run_block(index, features, decision.choice, observer)

        return self.unroll(x, run)

    def unroll(self, x: Tensor, run: RunBlock, path: Tensor | None = None) -> NetworkOutput:
        """Runs the network block by block: THE loop over gate and blocks.

        Args:
            x: (N, C, H, W) float32, normalised.
            run: runs each gated block by what was decided for it.
            path: (N, gated blocks) int64, the choices to take; ``None`` for the gate's own, or the policy's.

        Returns:
            The output; ``path`` holds the choices taken.
        """
        first, *gated = self.blocks
        n, options = len(x), len(self.options)
        if path is None and self.policy is not None:
            path = torch.tensor(self.policy, dtype=torch.int64, device=x.device).repeat(n, 1)
        features = first(self.backbone.stem(x))
        state = None if self.gate is None else self.gate.initial_state(features)
        scores, choices = x.new_zeros(n, 0, options), x.new_zeros(n, 0, dtype=torch.int64)
        steps: list[Decision] = []
        for index, block in enumerate(gated):
            if self.gate is None or state is None:
                score = x.new_zeros(n, options)
            else:
                score, state = self.gate(index, features, state)
            steps.append(Decision(score, decide(score) if path is None else path[:, index]))
            features = run(block, features, steps[-1])
        if steps:
            scores, choices = (torch.stack(values, 1) for values in zip(*steps, strict=True))
        costs = torch.tensor(self.options.costs, device=x.device).expand(len(gated), -1)
        return NetworkOutput(self.backbone.classify(features), choices, scores, expected_cost(scores, choices, costs))

    def _mix_options(self, block: BasicBlock, features: Tensor, decision: Decision) -> Tensor:
        possible = self.options_of(block.shape.index)
        if len(possible) == 1:
            return run_option(block, features, possible[0])
        soft = functional.softmax(decision.scores, 1)
        # The difference first: it is exactly zero, so the weights are exactly one-hot.
        weight = functional.one_hot(decision.choice, len(self.options)).to(soft.dtype) + (soft - soft.detach())
        outputs = [
            weight[:, k, None, None, None] * run_option(block, features, option)
            for k, option in enumerate(self.options)
            if option in possible
        ]
        return torch.stack(outputs).sum(0)

    @torch.no_grad()
    def run_block(self, index: int, features: Tensor, choice: Tensor, observer: BlockObserver | None = None) -> Tensor:
        """Runs the gated block ``index``, at least 1: (N, C, H, W) float32 to (N, C', H', W').

        Each sample runs in its own option, an index in ``choice`` (N,) int64; the observer gets each group first.
        """
        block = self.blocks[index]
        outputs, order = [], []
        for k in sorted(set(choice.tolist())):
            rows = torch.nonzero(choice == k).flatten()
            group = features if len(rows) == len(features) else features[rows]
            if observer is not None:
                observer(index, k, rows, group)
            outputs.append(run_option(block, group, self.options[k]))
            order.append(rows)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)[torch.argsort(torch.cat(order))]


def expected_cost(scores: Tensor, path: Tensor, costs: Tensor) -> Tensor:
    """Mean cost of the options taken; the softmax of the gate's scores carries its gradient (Section 3).

    Args:
        scores: (N, gated blocks, options) float32, before softmax.
        path: (N, gated blocks) int64, option indices.
        costs: (gated blocks, options) float32, in full-precision blocks.

    Returns:
        (N,) float32; 1 for a network without gated blocks.
    """
    if not path.shape[1]:
        return scores.new_ones(len(path))
    soft = functional.softmax(scores, 2)
    chosen = costs.expand(len(path), -1, -1).gather(2, path.unsqueeze(2)).squeeze(2)
    # The difference first: it is exactly zero, so the cost is exactly that of the choice.
    return (chosen + ((soft - soft.detach()) * costs).sum(2)).mean(1)


def run_option(block: BasicBlock, features: Tensor, option: Option, round_inputs: bool = True) -> Tensor:
    """Runs one block in one option: (N, C, H, W) float32 to (N, C', H', W').

    A quantised option rounds its convolutions' inputs, or only clamps them.
    """
    return block.skip(features) if option.skips else block(features, option.bits, round_inputs)


def _check_policy(policy: Sequence[int], architecture: Architecture, options: Options) -> tuple[int, ...]:
    if len(policy) != architecture.gated_blocks:
        raise OptionError(
            f"a policy of {len(policy)} option(s) for {architecture.gated_blocks} gated blocks; give one for each"
        )
    unknown = [choice for choice in policy if not 0 <= choice < len(options)]
    if unknown:
        raise OptionError(f"a policy with option index {unknown[0]}, expected 0 to {len(options) - 1}")
    return tuple(policy)
