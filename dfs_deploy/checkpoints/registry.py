"""Recognisers of checkpoint formats, chosen by marker keys, never by the order of keys or the name of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dfs_deploy.checkpoints.facts import CheckpointFacts, check_class_names
from dfs_deploy.checkpoints.reading import FORMAT, OLDER_VERSIONS, read_checkpoint_file
from dfs_deploy.checkpoints.weights import RawCheckpoint, choose_weights, own_weights
from dfs_deploy.errors import CheckpointError, UnknownCheckpointError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and the facts that came with it.

    Attributes:
        network: the reference model, in evaluation mode.
        input: input contract of the network.
        format: name of the recogniser that read it.
        assumptions: what was assumed, chosen, left out, or replaced by the caller's values, one line each.
        notes: those assumptions that are about which tensors belong to the network.
        weights_key: name of the weights in the file if there are several; else ``None``.
    """

    network: DFSNetwork
    input: InputContract
    format: str
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    weights_key: str | None = None


Loader = Callable[[RawCheckpoint, "Options | None", CheckpointFacts], Checkpoint]


_RECOGNIZERS: list[tuple[str, Callable[[RawCheckpoint], bool], Loader]] = []


def recognizer(matches: Callable[[RawCheckpoint], bool], *, marker: str) -> Callable[[Loader], Loader]:
    """Decorator that registers a loader of a checkpoint format; the first registered one that matches wins.

    Args:
        matches: whether a checkpoint is of this format.
        marker: name of a tensor that every network of this format has, by which its weights are found in a file.
    """

    def register(load: Loader) -> Loader:
        _RECOGNIZERS.append((marker, matches, load))
        return load

    return register


def _has(raw: RawCheckpoint, *parts: str) -> bool:
    return all(any(part in key for key in raw.tensors) for part in parts)


def is_fractrain(raw: RawCheckpoint) -> bool:
    """Whether a checkpoint is of FracTrain: the gate of the DFS release, with ranges as zero point and width."""
    return _has(raw, "running_zero_point") or _has(raw, "running_range")


_UNSUPPORTED: tuple[tuple[str, Callable[[RawCheckpoint], bool], str], ...] = (
    (
        "FracTrain",
        is_fractrain,
        "its quantiser differs from DFS's, so decisions would change; train with dfs-deploy or the DFS release",
    ),
    (
        "DFS backbone without a gate",
        lambda raw: _has(raw, "quantize_input") and not _has(raw, "control.") and not _has(raw, "_gate"),
        "it has no gate that could decide; train the gate (steps 1 and 2) and export that checkpoint",
    ),
    (
        "SkipNet with feed-forward gates",
        lambda raw: _has(raw, "_gate0.linear_layer") and not _has(raw, "control."),
        "only the recurrent gate is supported; use a recurrent-gate (rnn) checkpoint of SkipNet",
    ),
    (
        "BlockDrop",
        lambda raw: {"resnet", "agent"} <= set(raw.values),
        "its policy network is no recurrent gate; train with dfs-deploy instead",
    ),
)
"""Formats that look like a known one and cannot be deployed: name, test and remedy."""


def load_checkpoint(
    path: str | Path,
    options: str | Iterable[object] | None = None,
    facts: CheckpointFacts | None = None,
    *,
    deployable: bool = True,
) -> Checkpoint:
    """Reads a trained network of any known format.

    Nothing in the file is executed, and it takes no more memory than its tensors need.

    Args:
        path: a file of ``torch.save`` or a ``.safetensors`` file.
        options: options of the gate, such as ``skip,8,16,full``, if the file does not say; ``None`` for the format's
            default.
        facts: other facts that the caller knows, or ``None``.
        deployable: whether each block with quantised options must have activation ranges. Training starts from
            networks without them.

    Raises:
        CheckpointError: the file cannot be read or is incomplete.
        UnsafeCheckpointError: loading it would run code.
        UnknownCheckpointError: the format is unknown, or known and not deployable.
        UsageError: the facts are impossible, or impossible for this network.
    """
    path, facts = Path(path), facts or CheckpointFacts()
    options = None if options is None else Options.parse(options)
    markers = tuple(dict.fromkeys(marker for marker, _, _ in _RECOGNIZERS))
    file = read_checkpoint_file(path)
    if file.values.get("format") == FORMAT and file.values.get("version") not in OLDER_VERSIONS:
        raw = own_weights(file, facts.weights_key)
    else:
        raw = choose_weights(file, markers, facts.weights_key)
    for _, matches, load in _RECOGNIZERS:
        if matches(raw):
            checkpoint = load(raw, options, facts)
            check_class_names(checkpoint.input.class_names, checkpoint.network.architecture.classes)
            checkpoint.network.contract = checkpoint.input
            if deployable:
                check_ranges(checkpoint.network)
            assumptions = (*raw.notes, *checkpoint.assumptions)
            return replace(checkpoint, assumptions=assumptions, notes=raw.notes, weights_key=raw.weights)
    for kind, matches, remedy in _UNSUPPORTED:
        if matches(raw):
            raise UnknownCheckpointError(f"{path} is a {kind} checkpoint: {remedy}")
    if not raw.tensors:
        raise CheckpointError(f"{path} holds no tensors, expected a state dict; save model.state_dict() in it")
    some = ", ".join(sorted(raw.tensors)[:3])
    raise UnknownCheckpointError(
        f"{path} holds {len(raw.tensors)} tensors ({some}, ...) of no known format; expected a dfs-deploy or DFS"
        " release checkpoint, or a SkipNet with its recurrent gate"
    )


def check_ranges(network: DFSNetwork) -> None:
    """Raises CheckpointError if a gated block has quantised options and no activation range.

    Networks whose weights are rounded per channel need none: their ranges come from calibration data.
    """
    missing = network.without_ranges() if network.graphs.quantizer == "tensor" else {}
    if not missing:
        return
    if network.gate is not None and len(missing) == len(network.blocks):
        raise CheckpointError(
            "every activation range of the gated blocks is zero, so their quantised options never ran (a checkpoint"
            " of the gate-only stage); finish the joint training (step 2) and export that checkpoint"
        )
    blocks = ", ".join(map(str, missing))
    raise CheckpointError(
        f"the activation ranges of gated block(s) {blocks} are zero, expected one range per convolution; continue"
        " training until each block has run quantised"
    )


def check_options(options: Options, count: int) -> Options:
    """Returns ``options``; raises CheckpointError unless the gate has ``count`` scores."""
    if len(options) != count:
        raise CheckpointError(
            f"the gate scores {count} options and the list '{options}' names {len(options)}; give {count}, in the"
            " gate's order"
        )
    return options
