"""Recogniser of the DFS authors' release (GitHub ``Torment123/DFS``), whose convolutions carry their input ranges."""

from __future__ import annotations

from dfs_deploy.checkpoints.cifar_groups import GroupsReader, read_architecture
from dfs_deploy.checkpoints.facts import CheckpointFacts, assumed_input
from dfs_deploy.checkpoints.groups import GATE_WEIGHT, aliases
from dfs_deploy.checkpoints.registry import Checkpoint, check_options, is_fractrain, recognizer
from dfs_deploy.checkpoints.tensors import TensorReader
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import UnknownCheckpointError
from dfs_deploy.options import Options

FORMAT = "dfs-release"

DEFAULT_OPTIONS = {
    4: "skip,8,16,full",
    7: "skip,8,10,12,14,16,full",
    10: "skip,2,4,6,8,10,12,14,16,full",
}
"""Options by the number of scores of the gate: the paper's list, the list of the release's scripts, and the longest."""


def is_release(raw: RawCheckpoint) -> bool:
    """Whether the marker keys of a gated network of the release are present."""
    keys = raw.tensors.keys()
    return (
        "control.rnn_one.weight_ih_l0" in keys
        and any(key.endswith(".quantize_input.running_min") for key in keys)
        and GATE_WEIGHT in keys
        and not is_fractrain(raw)
    )


_ALIASES = {**aliases((2, 3)), **{f"group{group}_bn0.": f"group{group}_layer0.bn3." for group in (2, 3)}}


@recognizer(is_release, marker=GATE_WEIGHT)
def load_release(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads a gated network of the release, with 3 groups of any length.

    Raises:
        UnknownCheckpointError: the bitwidths of the gate's options are unknown.
        CheckpointError: tensors are missing or have another shape, or aliases differ.
    """
    reader = TensorReader(raw.tensors, "DFS release", _ALIASES)
    contract, assumptions = assumed_input(3, facts, "the release's")
    architecture = read_architecture(raw.tensors, reader, contract.shape[1:])
    count = reader.shape(GATE_WEIGHT, (None, architecture.gate.hidden))[0]
    if options is None:
        if count not in DEFAULT_OPTIONS:
            raise UnknownCheckpointError(
                f"a DFS release checkpoint whose gate scores {count} options; name them: --options skip,8,...,full"
            )
        options = Options.parse(DEFAULT_OPTIONS[count])
        assumptions = (
            f"the gate's {count} scores are taken for the options {options}; otherwise give --options",
            *assumptions,
        )
    check_options(options, count)

    groups = GroupsReader(reader, architecture, quantized=True)
    groups.common("control.rnn_one", "downsample", "bn3")
    for name, shape in (("weight", (count, architecture.gate.hidden)), ("bias", (count,))):
        groups.state[f"gate.projection.{name}"] = reader.take(f"control.proj.{name}", shape)
    # Every block has a bn3, which only blocks with a projection use.
    reader.skip(lambda key: ".bn3." in key)
    return Checkpoint(groups.network(options), contract, FORMAT, assumptions)
