"""Our own format: a network's description as JSON beside its tensors, in a file of ``torch.save`` or ``.safetensors``.

The description holds graphs over a closed set of operators, so a network loads on a machine that never saw the code
that made it, and nothing in the file is executed.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from dfs_deploy.checkpoints.facts import CheckpointFacts, check_class_names, corrected_input, recorded_input
from dfs_deploy.checkpoints.pickled import MAX_TENSORS
from dfs_deploy.checkpoints.reading import FORMAT, METADATA_KEY, OLDER_VERSIONS
from dfs_deploy.checkpoints.registry import Checkpoint, recognizer
from dfs_deploy.checkpoints.structure import check_structure, resized
from dfs_deploy.checkpoints.tensors import COUNTER, TensorReader, fill, without_values
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import CheckpointError, OptionError, UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.json_files import MalformedError, Name, decode_json
from dfs_deploy.io.text import first_line
from dfs_deploy.models import DFSNetwork, NetworkGraphs
from dfs_deploy.models.graph import check_graphs, named_tensors, tensor_tree
from dfs_deploy.network import MAX_BLOCKS, Architecture
from dfs_deploy.options import Options, parse_policy
from dfs_deploy.preprocessing import InputContract

VERSION = 3
"""Version 3 added networks of any graph; ``older`` reads the versions before."""

MARKER = "ranges.low"
"""Tensor that every network of this version has."""

_OWN = "net."
"""Beginning of the names of the user's tensors; what follows are the names in the user's state dict."""

_MOST_PARTS = 32
"""Most parts of a tensor's name: modules within modules."""


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Network of a file, all but its tensors.

    Attributes:
        architecture: its blocks, their shapes and choices; its gate.
        graphs: what it computes.
        options: bitwidths of the gate's options, in order.
        policy: option of each gated block, by name; ``None`` for a network with a gate.
        input: fields of its ``InputContract``.
        tensors: names of the user's tensors, in their order.
        buffers: those that are no parameters.
    """

    architecture: Architecture
    graphs: NetworkGraphs
    options: Annotated[tuple[int, ...], Meta(max_length=33)]
    policy: Annotated[tuple[Name, ...], Meta(max_length=MAX_BLOCKS)] | None
    input: dict[str, Any]
    tensors: Annotated[tuple[Name, ...], Meta(max_length=MAX_TENSORS)]
    buffers: Annotated[tuple[Name, ...], Meta(max_length=MAX_TENSORS)]


def save_checkpoint(path: str | Path, network: DFSNetwork, contract: InputContract) -> None:
    """Writes a network, whole or not at all.

    The file is built in memory first, so that errors of the file system are ``OSError``.

    Args:
        path: a name that ends in ``.safetensors`` selects that format; any other is written by ``torch.save``.
        network: the network, in any mode.
        contract: input contract of the network.

    Raises:
        OSError: the file cannot be written.
        UsageError: the contract is for images of another shape than the network's.
        CheckpointError: the network's graphs have what no file may hold, such as a constant that is infinite.
    """
    path = Path(path)
    if contract.shape != network.architecture.image_shape:
        raise UsageError(
            f"an input contract for images of shape {contract.shape}, expected the network's"
            f" {network.architecture.image_shape}; change the contract's shape"
        )
    check_graphs(network.graphs, named_tensors(network.net))
    parameters = {name for name, _ in network.net.named_parameters(remove_duplicate=False)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    own = tuple(key.removeprefix(_OWN) for key in tensors if key.startswith(_OWN))
    description = Description(
        network.architecture,
        network.graphs,
        network.options.bits,
        None if network.policy is None else tuple(network.options[choice].name for choice in network.policy),
        dataclasses.asdict(contract),
        own,
        tuple(name for name in own if name not in parameters),
    )
    values = {"format": FORMAT, "version": VERSION, "network": msgspec.json.encode(description).decode()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        write_whole(path, save(tensors, metadata={METADATA_KEY: json.dumps(values)}))
    else:
        buffer = io.BytesIO()
        torch.save({**values, "state_dict": tensors}, buffer)
        write_whole(path, buffer.getvalue())


@recognizer(
    lambda raw: raw.values.get("format") == FORMAT and raw.values.get("version") not in OLDER_VERSIONS, marker=MARKER
)
def load_native(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads a file that ``save_checkpoint`` wrote.

    Raises:
        CheckpointError: the file has another version or malformed values, or the tensors do not belong to the network
            that the values describe.
    """
    version = raw.values.get("version")
    if version != VERSION:
        raise CheckpointError(f"dfs-deploy checkpoint of version {version!r}, expected {VERSION}; update dfs-deploy")
    try:
        description = _described(raw.values)
        architecture = description.architecture
        recorded, saved = recorded_input(description.input, facts), Options(description.options)
        policy = None if description.policy is None else parse_policy(list(description.policy), saved)
        if facts.class_names is None:
            check_class_names(recorded.class_names, architecture.classes)
        if recorded.shape != architecture.image_shape:
            raise ValueError(f"input of shape {recorded.shape} for a network of {architecture.image_shape}")
    except (MalformedError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"dfs-deploy checkpoint with malformed values ({first_line(error)}); save it again"
        ) from error
    if options is not None and options != saved:
        raise CheckpointError(f"the checkpoint's options are {saved}, not {options}; leave --options out")
    contract, corrections = corrected_input(recorded, facts)
    reader = TensorReader(raw.tensors, "dfs-deploy")
    own = _own_tensors(reader, description)
    check_structure(architecture, description.graphs, own)
    if contract.shape != recorded.shape:
        architecture = resized(architecture, description.graphs, own, contract.shape)
    net = _tree(own, description.buffers)
    try:
        network = without_values(lambda: DFSNetwork(net, description.graphs, architecture, saved, policy))
    except OptionError as error:
        raise CheckpointError(f"dfs-deploy checkpoint of {error}; save it again") from error
    state = {f"{_OWN}{name}": tensor for name, tensor in own.items()}
    for key, tensor in network.state_dict().items():
        if key not in state:
            shape = tuple(tensor.shape)
            state[key] = reader.take_counter(key) if key.endswith(COUNTER) else reader.take(key, shape)
    reader.finish()
    return Checkpoint(fill(network, state), contract, FORMAT, corrections)


def _described(values: Mapping[str, Any]) -> Description:
    text = values.get("network")
    if not isinstance(text, str):
        raise MalformedError(f"no description of the network, but {type(text).__name__}")
    return decode_json(text.encode(), Description)


def _own_tensors(reader: TensorReader, description: Description) -> dict[str, Tensor]:
    """The user's tensors by their names: checked if a graph computes with them, else as they are."""
    deepest = max(description.tensors, key=lambda name: name.count("."), default="")
    if deepest.count(".") >= _MOST_PARTS:
        raise CheckpointError(
            f"dfs-deploy checkpoint with a tensor {deepest} of more than {_MOST_PARTS} parts; save it again"
        )
    check_graphs(description.graphs, dict.fromkeys(description.tensors, torch.empty(0)))
    used = {name for part in description.graphs.parts for name in part.tensors}
    own = {}
    for name in description.tensors:
        key = _OWN + name
        if name in used:
            own[name] = reader.take(key, None)
        elif name.endswith(COUNTER):
            own[name] = reader.take_counter(key)
        else:
            own[name] = reader.keep(key)
    return own


def _tree(tensors: Mapping[str, Tensor], buffers: tuple[str, ...]) -> nn.Module:
    try:
        return tensor_tree(tensors, tensors.keys() - set(buffers))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"dfs-deploy checkpoint with names of tensors that no network has ({first_line(error)}); save it again"
        ) from error
