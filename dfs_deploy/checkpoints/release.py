"""The DFS authors' release (GitHub ``Torment123/DFS``): ``control.rnn_one`` and a range beside each convolution."""

from __future__ import annotations

from dfs_deploy.checkpoints.cifar_groups import GroupsReader, numbered_blocks, read_architecture
from dfs_deploy.checkpoints.reading import RawCheckpoint, TensorReader
from dfs_deploy.checkpoints.registry import Checkpoint, check_options, recognizer
from dfs_deploy.checkpoints.rejected import is_fractrain
from dfs_deploy.errors import UnknownCheckpointError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import CIFAR10_CLASSES, InputContract

FORMAT = "dfs-release"

DEFAULT_OPTIONS = {
    4: "skip,8,16,full",
    7: "skip,8,10,12,14,16,full",
    10: "skip,2,4,6,8,10,12,14,16,full",
}
"""By the number of options that the gate scores: the paper's list, that of the release's scripts, and the longest."""


def is_release(raw: RawCheckpoint) -> bool:
    """Tells a gated DFS network of the release by its marker keys."""
    keys = raw.tensors.keys()
    return (
        "control.rnn_one.weight_ih_l0" in keys
        and any(key.endswith(".quantize_input.running_min") for key in keys)
        and "control.proj.weight" in keys
        and not is_fractrain(raw)
    )


@recognizer(FORMAT, is_release)
def load_release(raw: RawCheckpoint, options: Options | None) -> Checkpoint:
    """Reads a gated network of the release, with 3 groups of any length.

    Raises:
        UnknownCheckpointError: the gate scores a number of options whose bitwidths nobody has written down.
        CheckpointError: tensors are missing, of another shape, or aliases differ.
    """
    reader = TensorReader(raw.tensors, "DFS release")
    architecture = read_architecture(raw.tensors, reader)
    count = reader.take("control.proj.weight", (None, architecture.gate_hidden)).shape[0]
    assumptions = ["pixels are normalised with CIFAR-10's mean and standard deviation, as in the release's scripts"]
    if options is None:
        if count not in DEFAULT_OPTIONS:
            raise UnknownCheckpointError(
                f"a DFS release checkpoint whose gate scores {count} options; say which: --options skip,8,...,full"
            )
        options = Options.parse(DEFAULT_OPTIONS[count])
        assumptions.append(f"the gate's {count} scores stand for the options {options}; override with --options")
    check_options(options, count)

    groups = GroupsReader(reader, architecture, quantized=True)
    groups.common("control.rnn_one", "downsample", "bn3")
    for name, shape in (("weight", (count, architecture.gate_hidden)), ("bias", (count,))):
        groups.state[f"gate.projection.{name}"] = reader.take(f"control.proj.{name}", shape)
    for block_shape, group, place in numbered_blocks(architecture):
        block = f"group{group}_layer{place}"
        if block_shape.projects:
            for key in list(raw.tensors):
                for alias, original in (
                    (f"group{group}_ds{place}.", "downsample."),
                    (f"group{group}_bn{place}.", "bn3."),
                ):
                    if key.startswith(alias) and not key.endswith(".num_batches_tracked"):
                        reader.take_alias(key, f"{block}.{original}{key.removeprefix(alias)}")
    # Every block has a bn3; only those with a projection use it.
    reader.skip(lambda key: ".bn3." in key)
    reader.finish()

    network = DFSNetwork(architecture, options)
    network.load_state_dict(groups.state, strict=False)
    names = CIFAR10_CLASSES if architecture.classes == len(CIFAR10_CLASSES) else ()
    return Checkpoint(network, InputContract(architecture.image_shape, class_names=names), FORMAT, tuple(assumptions))
