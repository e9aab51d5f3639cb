"""The dynamic network, in two forwards over the same weights that must agree.

``forward`` computes every option of every block and mixes them by the gate's one-hot choice (Equation 1): it is what
training differentiates, and the oracle. ``route`` runs for each sample only what its gate chose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.architecture import Architecture
from dfs_deploy.models.backbone import Backbone, BasicBlock
from dfs_deploy.models.gate import Gate, decide
from dfs_deploy.options import Option, Options


@dataclass(frozen=True)
class NetworkOutput:
    """What one forward computed.

    Attributes:
        logits: (N, classes) float32.
        path: (N, gated blocks) int64, the option index that each gated block ran.
        scores: (N, gated blocks, options) float32, the gate's scores before softmax.
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
    """

    def __init__(self, architecture: Architecture, options: Options) -> None:
        super().__init__()
        self.architecture = architecture
        self.options = options
        self.backbone = Backbone(architecture)
        self.gate = Gate(architecture, len(options))

    @property
    def blocks(self) -> list[BasicBlock]:
        """The residual blocks, in the order in which they run; the first is never gated."""
        return [block for block in self.backbone.blocks if isinstance(block, BasicBlock)]

    def forward(self, x: Tensor) -> NetworkOutput:
        """Computes every option and mixes by the hard choice; the softmax carries the gradient (Section 3).

        Args:
            x: (N, C, H, W) float32, normalised.

        Returns:
            The output; ``path`` is the hard choice.
        """
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
        """
        first, *gated = self.blocks
        features = first(self.backbone.stem(x))
        state = self.gate.initial_state(features)
        costs = torch.tensor(self.options.costs, device=x.device)
        scores, path, cost = [], [], []
        for index in range(len(gated)):
            score, state = self.gate(index, features, state)
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
            index: of the block, at least 1.
            features: (N, C, H, W) float32.
            choice: (N,) int64, option indices.
            observer: called with each group of samples first.

        Returns:
            (N, C', H', W') float32.
        """
        block = self.blocks[index]
        shape = block.shape
        result = features.new_empty(features.shape[0], shape.out_channels, *_out_size(features, shape.stride))
        for k in sorted(set(choice.tolist())):
            rows = torch.nonzero(choice == k).flatten()
            group = features[rows]
            if observer is not None:
                observer(index, k, rows, group)
            result[rows] = run_option(block, group, self.options[k])
        return result

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
