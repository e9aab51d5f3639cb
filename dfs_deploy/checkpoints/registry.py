"""Which recogniser reads which checkpoint: found by marker keys, never by key order or file name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dfs_deploy.checkpoints.facts import CheckpointFacts, check_class_names
from dfs_deploy.checkpoints.reading import read_checkpoint_file
from dfs_deploy.checkpoints.rejected import reject
from dfs_deploy.checkpoints.weights import RawCheckpoint, choose_weights
from dfs_deploy.errors import CheckpointError, UnknownCheckpointError
from dfs_deploy.models import DFSNetwork, QuantizedConv2d
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what came with it.

    Attributes:
        network: the reference model, in evaluation mode.
        input: how pixels become its input.
        format: name of the recogniser that read it.
        assumptions: what the file does not say and was taken for granted, what was chosen or left out, and where the
            caller's word went before the file's, one line each.
        notes: those of the assumptions that are about which tensors of the file are the network's.
        weights_key: name of these weights in the file, if there are several; else ``None``.
    """

    network: DFSNetwork
    input: InputContract
    format: str
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    weights_key: str | None = None


Loader = Callable[[RawCheckpoint, "Options | None", CheckpointFacts], Checkpoint]


@dataclass(frozen=True)
class Recognizer:
    """A checkpoint format: how to tell it, and how to read it."""

    name: str
    matches: Callable[[RawCheckpoint], bool]
    load: Loader


_RECOGNIZERS: list[Recognizer] = []


def recognizer(name: str, matches: Callable[[RawCheckpoint], bool]) -> Callable[[Loader], Loader]:
    """Registers a loader for the checkpoints that ``matches`` accepts; the first one registered wins."""

    def register(load: Loader) -> Loader:
        _RECOGNIZERS.append(Recognizer(name, matches, load))
        return load

    return register


def load_checkpoint(
    path: str | Path,
    options: Options | None = None,
    facts: CheckpointFacts | None = None,
    *,
    deployable: bool = True,
) -> Checkpoint:
    """Reads a trained network of any known format.

    Nothing in the file is executed, and no more memory is taken than its tensors need.

    Args:
        path: a ``torch.save`` archive or a ``.safetensors`` file.
        options: what the gate chooses from, if the file does not say; ``None`` for the format's default.
        facts: what else the caller knows of it; ``None`` for nothing.
        deployable: whether each block must have run quantised already, as far as it has such options. Training begins
            with networks that have not.

    Raises:
        CheckpointError: the file cannot be read, or lacks something.
        UnsafeCheckpointError: loading it would run code.
        UnknownCheckpointError: no recogniser knows it, or one knows that it cannot be deployed.
        UsageError: facts that no network, or not this one, can have.
    """
    path, facts = Path(path), facts or CheckpointFacts()
    raw = choose_weights(read_checkpoint_file(path), facts.weights_key)
    for candidate in _RECOGNIZERS:
        if candidate.matches(raw):
            checkpoint = candidate.load(raw, options, facts)
            check_class_names(checkpoint.input.class_names, checkpoint.network.architecture.classes)
            if deployable:
                check_ranges(checkpoint.network)
            assumptions = (*raw.notes, *checkpoint.assumptions)
            return replace(checkpoint, assumptions=assumptions, notes=raw.notes, weights_key=raw.weights)
    reject(raw, path)
    if not raw.tensors:
        raise CheckpointError(f"{path} holds no tensors, expected a state dict; save model.state_dict() in it")
    some = ", ".join(sorted(raw.tensors)[:3])
    raise UnknownCheckpointError(
        f"{path} holds {len(raw.tensors)} tensors ({some}, ...) of no known format; expected a dfs-deploy, DFS release"
        " or SkipNet CIFAR checkpoint with its recurrent gate"
    )


def check_ranges(network: DFSNetwork) -> None:
    """Raises CheckpointError if a gated block may run quantised and has no range to quantise over."""
    missing = [
        block.shape.index
        for block in network.blocks[1:]
        if any(option.quantized for option in network.options_of(block.shape.index))
        and any(isinstance(module, QuantizedConv2d) and not module.has_range for module in block.modules())
    ]
    if not missing:
        return
    if network.gate is not None and len(missing) == len(network.blocks) - 1:
        raise CheckpointError(
            "every activation range of the gated blocks is zero: this is a gate-only stage, whose quantised options"
            " never ran; finish the joint training (step 2) and export that checkpoint"
        )
    blocks = ", ".join(map(str, missing))
    raise CheckpointError(
        f"the activation ranges of gated block(s) {blocks} are zero, expected a range a convolution; train on until"
        " each block has run quantised"
    )


def check_options(options: Options, count: int) -> Options:
    """Returns ``options`` if the gate scores just so many; raises CheckpointError otherwise."""
    if len(options) != count:
        raise CheckpointError(
            f"the gate scores {count} options and the list '{options}' names {len(options)}; give {count}, in the"
            " gate's order"
        )
    return options
