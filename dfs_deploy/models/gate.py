"""The gate: pools a block's output, steps an LSTM, and scores the options of the next block (Section 3, Figure 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfs_deploy.network import Architecture


class GateState(NamedTuple):
    """The LSTM's memory between blocks: ``hidden`` and ``cell``, each (N, hidden) float32."""

    hidden: Tensor
    cell: Tensor


class Gate(nn.Module):
    """One LSTM and projection for all blocks, and one embedding for each block that is followed by a gated one.

    Args:
        architecture: shape of the network.
        options: number of options that the gate chooses from.
    """

    def __init__(self, architecture: Architecture, options: int) -> None:
        super().__init__()
        sizes = architecture.gate
        self.embeddings = nn.ModuleList(
            nn.Linear(block.out_channels, sizes.embedding) for block in architecture.blocks[:-1]
        )
        self.lstm = nn.LSTMCell(sizes.embedding, sizes.hidden)
        self.projection = nn.Linear(sizes.hidden, options)

    def initial_state(self, features: Tensor) -> GateState:
        """Zeros, for the samples of ``features`` (N, C, H, W)."""
        zeros = features.new_zeros(features.shape[0], self.lstm.hidden_size)
        return GateState(zeros, zeros)

    def forward(self, block: int, features: Tensor, state: GateState) -> tuple[Tensor, GateState]:
        """Scores the options of block ``block + 1`` from the output of block ``block``.

        Args:
            block: index of the block that made ``features``; 0 is the first.
            features: (N, C, H, W) float32.
            state: the state after the block before.

        Returns:
            (N, options) float32 scores, before softmax; and the new state.
        """
        embedded = self.embeddings[block](features.mean((2, 3)))
        hidden, cell = self.lstm(embedded, tuple(state))
        return self.projection(hidden), GateState(hidden, cell)


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
