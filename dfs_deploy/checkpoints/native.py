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
from dfs_deploy.checkpoints.structure import check_structure, fixed_layers, resized
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
        graphs: graphs of its stem, blocks and head.
        options: bitwidths of the gate's options, in order.
        policy: option of each gated block, by name; ``None`` for a network with a gate.
        input: fields of its ``InputContract``.
        tensors: names of the user's tensors, in their order.
        buffers: those that are no parameters.
        unsaved: those of the buffers that the user's state dict leaves out, and graphs read.
        aliases: names of tensors that stand in the file under another name, and that name: one tensor of several names.
    """

    architecture: Architecture
    graphs: NetworkGraphs
    options: Annotated[tuple[int, ...], Meta(max_length=33)]
    policy: Annotated[tuple[Name, ...], Meta(max_length=MAX_BLOCKS)] | None
    input: dict[str, Any]
    tensors: Annotated[tuple[Name, ...], Meta(max_length=MAX_TENSORS)]
    buffers: Annotated[tuple[Name, ...], Meta(max_length=MAX_TENSORS)]
    unsaved: Annotated[tuple[Name, ...], Meta(max_length=MAX_TENSORS)] = ()
    aliases: Annotated[dict[Name, Name], Meta(max_length=MAX_TENSORS)] = {}


def save_checkpoint(path: str | Path, network: DFSNetwork, contract: InputContract) -> None:
    """Writes a network, whole or not at all.

    The file is built in memory first, so that errors of the file system are ``OSError``.

    Args:
        path: a name that ends in ``.safetensors`` selects that format; any other is written by ``torch.save``.
        network: the network, in any mode.
        contract: input contract of the network.

    Raises:
        OSError: the file cannot be written.
        UsageError: the contract is for images of another shape than the network's, or for other classes.
        CheckpointError: the network has what no file may hold, such as a constant that is infinite, or a name without
            end. Nothing is written that could not be loaded.
    """
    path = Path(path)
    if contract.shape != network.architecture.image_shape:
        raise UsageError(
            f"an input contract for images of shape {contract.shape}, expected the network's"
            f" {network.architecture.image_shape}; change the contract's shape"
        )
    check_class_names(contract.class_names, network.architecture.classes)
    description, tensors = _content(network, contract)
    values = {"format": FORMAT, "version": VERSION, "network": msgspec.json.encode(description).decode()}
    if path.suffix == ".safetensors":
        write_whole(path, _safetensors(tensors, {METADATA_KEY: json.dumps(values)}))
    else:
        buffer = io.BytesIO()
        torch.save({**values, "state_dict": tensors}, buffer)
        write_whole(path, buffer.getvalue())


def _content(network: DFSNetwork, contract: InputContract) -> tuple[Description, dict[str, Tensor]]:
    """A network's description and tensors, as a file holds them.

    Raises:
        CheckpointError: no file could hold them.
    """
    own: dict[str, Any] = network.net.state_dict(keep_vars=True)  # the tensors themselves: one of two names is found
    every, read = named_tensors(network.net), [name for part in network.graphs.parts for name in part.tensors]
    unsaved = tuple(dict.fromkeys(name for name in read if name in every and name not in own))
    own |= {name: every[name] for name in unsaved}
    for name, value in own.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(
                f"{name} of the network is a {type(value).__name__}, expected a dense tensor; leave it out of its state"
            )
    check_graphs(network.graphs, own)
    first: dict[int, str] = {}
    aliases = {name: first[id(value)] for name, value in own.items() if first.setdefault(id(value), name) != name}
    parameters = {name for name, _ in network.net.named_parameters(remove_duplicate=False)}
    description = Description(
        network.architecture,
        network.graphs,
        network.options.bits,
        None if network.policy is None else tuple(network.options[choice].name for choice in network.policy),
        dataclasses.asdict(contract),
        tuple(own),
        tuple(name for name in own if name not in parameters),
        unsaved,
        aliases,
    )
    try:
        decode_json(msgspec.json.encode(description), Description)
    except MalformedError as error:
        raise CheckpointError(f"a network that no checkpoint can hold ({first_line(error)}); correct it") from error
    _tree(own, description)
    check_structure(network.architecture, network.options, network.graphs, own)
    rest = {key: value for key, value in network.state_dict().items() if not key.startswith(_OWN)}
    held = {**{f"{_OWN}{name}": value for name, value in own.items() if name not in aliases}, **rest}
    # Copies: what shares memory with other tensors would be written whole for each, or refused by safetensors.
    return description, {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in held.items()
    }


def _safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Content of a ``.safetensors`` file.

    Raises:
        CheckpointError: a tensor is of a type that the format lacks.
    """
    import safetensors.torch

    try:
        return safetensors.torch.save(dict(tensors), metadata=metadata)
    except (KeyError, ValueError, RuntimeError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"a tensor that .safetensors cannot hold ({first_line(error)}); give a name that ends in .pt"
        ) from error


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
        raise _malformed(error) from error
    if options is not None and options != saved:
        raise CheckpointError(f"the checkpoint's options are {saved}, not {options}; leave --options out")
    contract, corrections = corrected_input(recorded, facts)
    reader = TensorReader(raw.tensors, "dfs-deploy")
    own = _own_tensors(reader, description)
    check_structure(architecture, saved, description.graphs, own)
    if contract.shape != recorded.shape:
        corrections += fixed_layers(architecture, description.graphs, own, contract.shape)
        architecture = resized(architecture, description.graphs, own, contract.shape)
    net = _tree(own, description)
    try:
        network = without_values(lambda: DFSNetwork(net, description.graphs, architecture, saved, policy))
    except OptionError as error:
        raise CheckpointError(f"dfs-deploy checkpoint of {error}; save it again") from error
    state = {f"{_OWN}{name}": tensor for name, tensor in named_tensors(net).items() if name not in description.unsaved}
    for key, tensor in network.state_dict().items():
        if key not in state:
            shape = tuple(tensor.shape)
            state[key] = reader.take_counter(key) if key.endswith(COUNTER) else reader.take(key, shape)
    reader.finish()
    return Checkpoint(fill(network, state), contract, FORMAT, corrections)


def users_state(raw: RawCheckpoint) -> dict[str, Tensor]:
    """The state dict of the user's network in a file that ``save_checkpoint`` wrote; tensors are not checked.

    Raises:
        CheckpointError: the file has malformed values, or lacks a tensor.
    """
    try:
        description = _described(raw.values)
    except MalformedError as error:
        raise _malformed(error) from error
    unsaved = set(description.unsaved)
    held = {name: _OWN + description.aliases.get(name, name) for name in description.tensors if name not in unsaved}
    if lacking := next((key for key in held.values() if key not in raw.tensors), None):
        raise CheckpointError(f"dfs-deploy checkpoint lacks {lacking}; it is incomplete: save it again")
    return {name: raw.tensors[key] for name, key in held.items()}


def _malformed(error: Exception) -> CheckpointError:
    return CheckpointError(f"dfs-deploy checkpoint with malformed values ({first_line(error)}); save it again")


def _described(values: Mapping[str, Any]) -> Description:
    text = values.get("network")
    if not isinstance(text, str):
        raise MalformedError(f"no description of the network, but {type(text).__name__}")
    return decode_json(text.encode(), Description)


def _own_tensors(reader: TensorReader, description: Description) -> dict[str, Tensor]:
    """The user's tensors by their names: checked if a graph computes with them, else as they are."""
    check_graphs(description.graphs, dict.fromkeys(description.tensors, torch.empty(0)))
    aliases, names = description.aliases, set(description.tensors)
    if stray := set(description.unsaved) - set(description.buffers):
        raise CheckpointError(f"dfs-deploy checkpoint without {min(stray)}, which is no buffer; save it again")
    for name, other in aliases.items():
        if not {name, other} <= names or other in aliases:
            raise CheckpointError(f"dfs-deploy checkpoint with {name} under the name {other}; save it again")
    used = {aliases.get(name, name) for part in description.graphs.parts for name in part.tensors}
    own = {}
    for name in description.tensors:
        key = _OWN + name
        if name in aliases:
            continue
        if name in used:
            own[name] = reader.take(key, None)
        elif name.endswith(COUNTER):
            own[name] = reader.take_counter(key)
        else:
            own[name] = reader.keep(key)
    return {name: own[aliases.get(name, name)] for name in description.tensors}


def _tree(tensors: Mapping[str, Tensor], description: Description) -> nn.Module:
    """A module with the user's tensors under their names."""
    deepest = max(tensors, key=lambda name: name.count("."), default="")
    if deepest.count(".") >= _MOST_PARTS:
        raise CheckpointError(
            f"dfs-deploy checkpoint with a tensor {deepest} of more than {_MOST_PARTS} parts; save it again"
        )
    trained = tensors.keys() - set(description.buffers)
    try:
        return tensor_tree(tensors, trained, set(description.unsaved))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"dfs-deploy checkpoint with names of tensors that no network has ({first_line(error)}); save it again"
        ) from error
