"""Recogniser of SkipNet's CIFAR networks with a recurrent gate (Wang et al. 2018), whose options are skip and full."""

from __future__ import annotations

from dfs_deploy.checkpoints.cifar_groups import GroupsReader, read_architecture
from dfs_deploy.checkpoints.facts import CheckpointFacts, assumed_input
from dfs_deploy.checkpoints.groups import GATE_WEIGHT, aliases, two_scores
from dfs_deploy.checkpoints.registry import Checkpoint, recognizer
from dfs_deploy.checkpoints.tensors import TensorReader
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.options import Options

FORMAT = "skipnet"

OPTIONS = Options.parse("skip,full")


def is_skipnet(raw: RawCheckpoint) -> bool:
    """Whether the marker keys of a CIFAR SkipNet with a recurrent gate are present."""
    keys = raw.tensors.keys()
    projection = raw.tensors.get(GATE_WEIGHT)
    return (
        "control.rnn.weight_ih_l0" in keys
        and projection is not None
        and projection.ndim == 2
        and projection.shape[0] == 1
        and not any("quantize_input" in key for key in keys)
        and not any(key.startswith(("group4_", "group1_ds0")) for key in keys)
    )


@recognizer(is_skipnet, marker=GATE_WEIGHT)
def load_skipnet(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads a SkipNet for CIFAR.

    Raises:
        CheckpointError: tensors are missing or have another shape, aliases differ, or other options were requested.
    """
    check_skipnet_options(options)
    reader = TensorReader(raw.tensors, "SkipNet", aliases((2, 3)))
    contract, assumptions = assumed_input(3, facts, "SkipNet's")
    architecture = read_architecture(raw.tensors, reader, contract.shape[1:])
    groups = GroupsReader(reader, architecture, quantized=False)
    groups.common("control.rnn", "downsample.0", "downsample.1")
    groups.state.update(two_scores(reader, architecture.gate.hidden))
    return Checkpoint(groups.network(OPTIONS), contract, FORMAT, assumptions)


def check_skipnet_options(options: Options | None) -> None:
    """Raises CheckpointError if other options are asked for than a SkipNet has."""
    if options not in (None, OPTIONS):
        raise CheckpointError(
            f"a SkipNet checkpoint, whose gate chooses between {OPTIONS}, not {options}; leave --options out"
        )
