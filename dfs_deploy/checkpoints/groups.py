"""Tensor names of the DFS release and of SkipNet: a block is ``group{G}_layer{I}``, its gate ``group{G}_gate{I}``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from dfs_deploy.checkpoints.tensors import COUNTER, TensorReader
from dfs_deploy.errors import CheckpointError
from dfs_deploy.network import Architecture, Block

_BLOCK = re.compile(r"group(\d{1,6})_layer(\d{1,6})\.conv1\.weight")

GATE_WEIGHT = "control.proj.weight"
"""Weight of the gate's scores in every format, by which a network of theirs is found in a file."""

NORM = ("weight", "bias", "running_mean", "running_var")
"""Last parts of the names of a normalisation's tensors, without its count of batches."""


def aliases(groups: Iterable[int]) -> dict[str, str]:
    """Second names of the projections' tensors, by the beginning of the key."""
    return {f"group{group}_ds0.": f"group{group}_layer0.downsample." for group in groups}


def block_counts(keys: Iterable[str], groups: int) -> tuple[int, ...]:
    """Number of blocks in each group.

    Args:
        keys: names of all tensors.
        groups: number of groups that such a network has.

    Raises:
        CheckpointError: blocks are missing, or there is another number of groups.
    """
    found = {(int(m[1]), int(m[2])) for key in keys if (m := _BLOCK.fullmatch(key))}
    counts = tuple(sum(1 for group, _ in found if group == g) for g in range(1, groups + 1))
    if found != {(g, i) for g, count in enumerate(counts, start=1) for i in range(count)} or 0 in counts:
        some = ", ".join(f"group{group}_layer{position}" for group, position in sorted(found)[:40])
        raise CheckpointError(
            f"a checkpoint with blocks {some or 'of no name'}, expected groups 1 to {groups} with blocks from 0 on"
        )
    return counts


def numbered_blocks(architecture: Architecture) -> Iterator[tuple[Block, int, int]]:
    """Yields the blocks in order, each with its group (from 1) and its position in the group (from 0)."""
    for group, blocks in itertools.groupby(architecture.blocks, key=lambda block: block.group):
        for position, block in enumerate(blocks):
            yield block, group, position


def gate_state(reader: TensorReader, architecture: Architecture, lstm: str) -> dict[str, Tensor]:
    """Tensors of the gate under our names, without those of its scores, in which the formats differ.

    Args:
        reader: tensors of the checkpoint.
        architecture: the network; groups of its blocks are those in the names.
        lstm: prefix of the LSTM's tensors.
    """
    embedding, hidden = architecture.gate.embedding, architecture.gate.hidden
    state = {}
    for shape, group, position in numbered_blocks(architecture):
        theirs = f"group{group}_gate{position}.1"
        if shape.index < architecture.gated_blocks:
            weight = reader.take(f"{theirs}.weight", (embedding, shape.out_channels, 1, 1))
            state[f"gate.embeddings.{shape.index}.weight"] = weight[..., 0, 0]
            state[f"gate.embeddings.{shape.index}.bias"] = reader.take(f"{theirs}.bias", (embedding,))
    for name, inputs in (("ih", embedding), ("hh", hidden)):
        weights, biases = f"weight_{name}", f"bias_{name}"
        state[f"gate.lstm.{weights}"] = reader.take(f"{lstm}.{weights}_l0", (4 * hidden, inputs))
        state[f"gate.lstm.{biases}"] = reader.take(f"{lstm}.{biases}_l0", (4 * hidden,))
    # The gate after the last block exists in every format and is never used.
    last = f"group{group}_gate{position}."
    reader.skip(lambda key: key.endswith(COUNTER) or key.startswith(last))
    return state


def two_scores(reader: TensorReader, hidden: int) -> dict[str, Tensor]:
    """Scores of SkipNet's gate under our names: its one sigmoid score becomes zero for skip, and itself for full.

    A sigmoid above one half is a score above zero, and a score of exactly zero skips in both forms.

    Args:
        reader: tensors of the checkpoint.
        hidden: hidden units of the LSTM.
    """
    axes = reader.axes(GATE_WEIGHT)
    score = reader.take(GATE_WEIGHT, (1, hidden, *(1,) * max(0, axes - 2))).reshape(1, hidden)
    bias = reader.take("control.proj.bias", (1,))
    return {
        "gate.projection.weight": torch.cat([torch.zeros_like(score), score]),
        "gate.projection.bias": torch.cat([torch.zeros_like(bias), bias]),
    }
