"""The dynamic network, in two forwards over the same weights that must agree.

``forward`` computes every option of every block and mixes them by the gate's one-hot choice (Equation 1): it is what
training differentiates, and the oracle. ``route`` runs for each sample only what its gate chose.

A network may have a static *policy* instead of a gate: an option for each block, the same for every input. Uniform
bitwidths (Banner et al. 2018) and mixed precision (HAQ, Wang et al. 2019) are such networks; both forwards then run the
policy's option alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """What one forward computed.

    Attributes:
        logits: (N, classes) float32.
        path: (N, gated blocks) int64, the option index that each gated block ran.
        scores: (N, gated blocks, options) float32, the gate's scores before softmax; zeros where a policy decides.
        expected_cost: (N,) float32, mean over gated blocks of the cost chosen; differentiable in ``forward``.
    """

    logits: Tensor
    path: Tensor
    scores: Tensor
    expected_cost: Tensor


BlockObserver = Callable[[int, int, Tensor, Tensor], None]
"""Called as ``observer(block, option_index, rows, features)`` with the samples that a block is about to run."""


class DFSNetwork(nn.Module):
    """A backbone and the gate that chooses, per sample and per block, one of the options.

    Args:
        architecture: shape of the network.
        options: what a gated block may do, in the order of the gate's scores.
        policy: for a network without a gate, the option index of each gated block; ``None`` for one with a gate.

    Attributes:
        gate: the gate, or ``None`` where a policy decides.
        policy: the option index of each gated block, or ``None`` where the gate decides.

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

        Args:
            policy: the option index of each gated block.
            options: what the indices point into; ``None`` for the network's own.

        Raises:
            OptionError: a policy that does not fit.
        """
        device = self.backbone.head.weight.device
        static = DFSNetwork(self.architecture, options or self.options, policy).to(device).train(self.training)
        static.backbone.load_state_dict(self.backbone.state_dict())
        return static

    def options_of(self, index: int) -> tuple[Option, ...]:
        """What the gated block ``index``, at least 1, may do: every option, or the policy's alone."""
        return tuple(self.options) if self.policy is None else (self.options[self.policy[index - 1]],)

    def forward(self, x: Tensor) -> NetworkOutput:
        """Computes every option and mixes by the hard choice; the softmax carries the gradient (Section 3).

        Args:
            x: (N, C, H, W) float32, normalised.

        Returns:
            The output; ``path`` is the hard choice.
        """
        if self.gate is None:
            return self._follow_policy(x, None)
        first, *gated = self.blocks
        features = first(self.backbone.stem(x))
        state = self.gate.initial_state(features)
        costs = torch.tensor(self.options.costs, device=x.device)
        scores, path, cost = [], [], []
        for index, block in enumerate(gated):
            score, state = self.gate(index, features, state)
            choice = decide(score)
            soft = functional.softmax(score, 1)
            # The difference first: it is exactly zero, so the weights are exactly one-hot.
            weight = functional.one_hot(choice, len(self.options)).to(soft.dtype) + (soft - soft.detach())
            features = sum(
                weight[:, k, None, None, None] * run_option(block, features, option)
                for k, option in enumerate(self.options)
            )
            scores.append(score)
            path.append(choice)
            cost.append((weight * costs).sum(1))
        return self._output(x, features, scores, path, cost)

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
        if self.gate is None:
            return self._follow_policy(x, observer)
        first, *gated = self.blocks
        features = first(self.backbone.stem(x))
        state = self.gate.initial_state(features)
        costs = torch.tensor(self.options.costs, device=x.device)
        scores, path, cost = [], [], []
        for index in range(len(gated)):
            score, state = self.gate(index, features, state)
            if not torch.isfinite(score).all():  # no option has the greatest score then
                raise CheckpointError(
                    f"the gate's scores after block {index} are NaN or infinite on these data, expected finite values;"
                    " check the checkpoint's weights and how it was trained"
                )
            choice = decide(score)
            features = self.run_block(index + 1, features, choice, observer)
            scores.append(score)
            path.append(choice)
            cost.append(costs[choice])
        return self._output(x, features, scores, path, cost)

    @torch.no_grad()
    def run_block(self, index: int, features: Tensor, choice: Tensor, observer: BlockObserver | None = None) -> Tensor:
        """Runs one gated block, each sample in its own option.

        Args:
            index: index of the block, at least 1.
            features: (N, C, H, W) float32.
            choice: (N,) int64, option indices.
            observer: called with each group of samples first.

        Returns:
            (N, C', H', W') float32.
        """
        block = self.blocks[index]
        size = _out_size(features, block.conv1.stride)
        result = features.new_empty(features.shape[0], block.shape.out_channels, *size)
        for k in sorted(set(choice.tolist())):
            rows = torch.nonzero(choice == k).flatten()
            group = features[rows]
            if observer is not None:
                observer(index, k, rows, group)
            result[rows] = run_option(block, group, self.options[k])
        return result

    def _follow_policy(self, x: Tensor, observer: BlockObserver | None) -> NetworkOutput:
        assert self.policy is not None  # noqa: S101 (there is a gate or a policy)
        first, *gated = self.blocks
        features = first(self.backbone.stem(x))
        for block, choice in zip(gated, self.policy, strict=True):
            if observer is not None:
                observer(block.shape.index, choice, torch.arange(len(x), device=x.device), features)
            features = run_option(block, features, self.options[choice])
        path = torch.tensor(self.policy, dtype=torch.int64, device=x.device).expand(len(x), -1)
        costs = torch.tensor(self.options.costs, device=x.device)[path]
        return NetworkOutput(
            logits=self.backbone.classify(features),
            path=path.clone(),
            scores=x.new_zeros(len(x), len(gated), len(self.options)),
            expected_cost=costs.mean(1) if gated else x.new_ones(len(x)),
        )

    def _output(
        self, x: Tensor, features: Tensor, scores: list[Tensor], path: list[Tensor], cost: list[Tensor]
    ) -> NetworkOutput:
        n, k = x.shape[0], len(self.options)
        return NetworkOutput(
            logits=self.backbone.classify(features),
            path=torch.stack(path, 1) if path else x.new_zeros((n, 0), dtype=torch.int64),
            scores=torch.stack(scores, 1) if scores else x.new_zeros((n, 0, k)),
            expected_cost=torch.stack(cost, 1).mean(1) if cost else x.new_ones(n),
        )


def run_option(block: BasicBlock, features: Tensor, option: Option, round_inputs: bool = True) -> Tensor:
    """Runs one block in one option.

    Args:
        block: the block.
        features: (N, C, H, W) float32.
        option: what to do with it.
        round_inputs: whether a quantised option rounds its convolutions' inputs, or only clamps them.

    Returns:
        (N, C', H', W') float32.
    """
    return block.skip(features) if option.skips else block(features, option.bits, round_inputs)


def _out_size(features: Tensor, stride: int) -> tuple[int, int]:
    height, width = features.shape[2:]
    return -(-height // stride), -(-width // stride)


def _check_policy(policy: Sequence[int], architecture: Architecture, options: Options) -> tuple[int, ...]:
    if len(policy) != architecture.gated_blocks:
        raise OptionError(
            f"a policy of {len(policy)} option(s) for {architecture.gated_blocks} gated blocks; give one for each"
        )
    unknown = [choice for choice in policy if not 0 <= choice < len(options)]
    if unknown:
        raise OptionError(f"a policy with option index {unknown[0]}, expected 0 to {len(options) - 1}")
    return tuple(policy)
