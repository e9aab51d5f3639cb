"""The gates: each pools a block's output and scores the options of the next block.

``LSTMGate`` is DFS's and SkipNet's: one LSTM that steps from block to block (Section 3, Figure 2). ``StatelessGate`` is
that of ConvNet-AIG (Veit and Belongie 2018, Section 3.1): two small layers per block, without memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfs_deploy.network import Architecture

_GAP = 0.5
"""Distance of the first scores of neighbouring options: the most precise of four begins with a softmax of 0.46."""

GateState = tuple[Tensor, ...]
"""A gate's memory between blocks: an LSTM's hidden and cell state, each (N, hidden) float32; empty without memory."""


class Gate(nn.Module):
    """The interface of every gate.

    Args:
        architecture: shape of the network.
        decided: whether each block from the second on is decided; at the others the gate does not step.
        options: number of options that the gate chooses from.
    """

    def __init__(self, architecture: Architecture, decided: Sequence[bool], options: int) -> None:
        super().__init__()
        self.decided = tuple(decided)
        self.options = options

    def initial_state(self, features: Tensor) -> GateState:
        """State before the first step, for the samples of ``features`` (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, block: int, features: Tensor, state: GateState) -> tuple[Tensor, GateState]:
        """Scores the options of block ``block + 1`` from the output of block ``block``.

        Args:
            block: index of the block that made ``features``; 0 is the stem.
            features: (N, C, H, W) float32.
            state: the state after the step before.

        Returns:
            (N, options) float32 scores, before softmax; and the new state.
        """
        raise NotImplementedError

    def prefer(self, order: Sequence[int]) -> None:
        """Makes a new gate choose one option whatever it sees, by so little that training soon changes it.

        A block that may not run that option runs the next one.

        Args:
            order: indices of the options, the one that is chosen first.
        """
        raise NotImplementedError

    @property
    def prefers(self) -> bool:
        """Whether it is as ``prefer`` left it."""
        raise NotImplementedError

    def shift(self, scores: Tensor) -> None:
        """Adds something to the scores of every block, whatever it sees.

        Args:
            scores: (options,) float32.
        """
        raise NotImplementedError

    def standardize(self, block: int, features: Tensor) -> None:
        """Scales what the gate sees of some samples to mean 0 and deviation 1, if it does not normalise by itself.

        Args:
            block: index of the block that made ``features``, followed by a decided one.
            features: (N, C, H, W) float32, N at least 2.
        """


class LSTMGate(Gate):
    """One LSTM and projection for all blocks, and one embedding for each block that is followed by a decided one."""

    def __init__(self, architecture: Architecture, decided: Sequence[bool], options: int) -> None:
        super().__init__(architecture, decided, options)
        sizes = architecture.gate
        self.embeddings = nn.ModuleList(
            nn.Linear(block.out_channels, sizes.embedding) if steps else nn.Identity()
            for block, steps in zip(architecture.blocks[:-1], decided, strict=True)
        )
        self.lstm = nn.LSTMCell(sizes.embedding, sizes.hidden)
        self.projection = nn.Linear(sizes.hidden, options)

    def initial_state(self, features: Tensor) -> GateState:
        zeros = features.new_zeros(features.shape[0], self.lstm.hidden_size)
        return zeros, zeros

    def forward(self, block: int, features: Tensor, state: GateState) -> tuple[Tensor, GateState]:
        hidden, cell = self.lstm(self.embeddings[block](features.mean((2, 3))), state)
        return self.projection(hidden), (hidden, cell)

    def prefer(self, order: Sequence[int]) -> None:
        _prefer(self.projection, order, 0.4 * _GAP)  # hidden values lie within -1 and 1: no image can bridge the gap

    @property
    def prefers(self) -> bool:
        return _prefers(self.projection)

    @torch.no_grad()
    def shift(self, scores: Tensor) -> None:
        self.projection.bias.add_(scores)

    @torch.no_grad()
    def standardize(self, block: int, features: Tensor) -> None:
        embedding = self.embeddings[block]
        embedded = embedding(features.mean((2, 3)))
        mean, deviation = embedded.mean(0), embedded.std(0).clamp_min(1e-6)
        embedding.get_parameter("weight").div_(deviation[:, None])
        embedding.get_parameter("bias").sub_(mean).div_(deviation)


class StatelessStep(nn.Module):
    """One block's gate: a layer with batch normalisation and relu, then the scores.

    Args:
        channels: channels of the features that it reads.
        hidden: features between its two layers.
        options: number of options.
    """

    def __init__(self, channels: int, hidden: int, options: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.score = nn.Linear(hidden, options)

    def forward(self, pooled: Tensor) -> Tensor:
        """Maps pooled features (N, channels) to scores (N, options)."""
        # One sample is no batch: it is normalised by the running statistics.
        norm = self.norm
        batch = norm.training and len(pooled) > 1
        momentum = 0.1 if norm.momentum is None else norm.momentum
        reduced = functional.batch_norm(
            self.reduce(pooled), norm.running_mean, norm.running_var, norm.weight, norm.bias, batch, momentum, norm.eps
        )
        scores: Tensor = self.score(functional.relu(reduced))
        return scores


class StatelessGate(Gate):
    """One small network for each decided block; ``architecture.gate.hidden`` features between its two layers."""

    def __init__(self, architecture: Architecture, decided: Sequence[bool], options: int) -> None:
        super().__init__(architecture, decided, options)
        self.steps = nn.ModuleList(
            StatelessStep(block.out_channels, architecture.gate.hidden, options) if steps else nn.Identity()
            for block, steps in zip(architecture.blocks[:-1], decided, strict=True)
        )

    def initial_state(self, features: Tensor) -> GateState:
        return ()

    def forward(self, block: int, features: Tensor, state: GateState) -> tuple[Tensor, GateState]:
        return self.steps[block](features.mean((2, 3))), state

    def prefer(self, order: Sequence[int]) -> None:
        for step in self.steps:
            if isinstance(step, StatelessStep):
                _prefer(step.score, order, 0.04 * _GAP)  # for normalised values of up to a dozen deviations

    @property
    def prefers(self) -> bool:
        return all(_prefers(step.score) for step in self.steps if isinstance(step, StatelessStep))

    @torch.no_grad()
    def shift(self, scores: Tensor) -> None:
        for step in self.steps:
            if isinstance(step, StatelessStep):
                step.score.bias.add_(scores)


@torch.no_grad()
def _prefer(scores: nn.Linear, order: Sequence[int], reach: float) -> None:
    """Spaces biases by their order, and bounds the sum of the absolute weights of each score."""
    scores.weight.mul_(reach / scores.weight.abs().sum(1).max())
    for rank, option in enumerate(order):
        scores.bias[option] = -_GAP * rank


def _prefers(scores: nn.Linear) -> bool:
    """Whether biases are still spaced as ``_prefer`` spaced them: no step of an optimizer leaves them so."""
    return sorted(scores.bias.tolist(), reverse=True) == [-_GAP * rank for rank in range(scores.out_features)]


GATES: dict[str, type[Gate]] = {"lstm": LSTMGate, "stateless": StatelessGate}
"""Gates by the kind in ``GateShape``."""


def decide(scores: Tensor) -> Tensor:
    """The option with the greatest score; of equal ones, the lowest index.

    Args:
        scores: (N, options) float.

    Returns:
        (N,) int64. The last option if a score is NaN, as in a training that diverged: its loss then says so.
    """
    # torch.argmax promises no order between equal maxima, so look for the first index that reaches the maximum.
    last = scores.shape[1] - 1
    indices = torch.arange(scores.shape[1], device=scores.device)
    reached = scores == scores.amax(1, keepdim=True)
    return torch.where(reached, indices, last).amin(1)
