"""Our own format: a dict of tensors and plain values, or ``.safetensors`` with the values in its header."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dfs_deploy.checkpoints.facts import CheckpointFacts, check_class_names, corrected_input
from dfs_deploy.checkpoints.reading import METADATA_KEY
from dfs_deploy.checkpoints.registry import Checkpoint, recognizer
from dfs_deploy.checkpoints.tensors import COUNTER, TensorReader, fill, without_values
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.text import first_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.network import Architecture, cifar_resnet, cifar_values
from dfs_deploy.options import Options, parse_policy
from dfs_deploy.preprocessing import InputContract, class_names_problem

FORMAT = "dfs-deploy"
VERSION = 2
"""Version 2 added ``policy``; files of version 1 have a gate and are still read."""

_TENSORS_OF_A_BLOCK = 12
"""Fewest tensors of a block: two convolutions with weight and range, two normalisations with at least three each."""


def save_checkpoint(path: str | Path, network: DFSNetwork, contract: InputContract) -> None:
    """Writes a network, whole or not at all.

    The file is built in memory first, so that errors of the file system are ``OSError``.

    Args:
        path: a name that ends in ``.safetensors`` selects that format; any other is written by ``torch.save``.
        network: the network, in any mode.
        contract: input contract of the network.

    Raises:
        OSError: the file cannot be written.
        UsageError: the network is no CIFAR ResNet, which this format cannot describe.
    """
    path = Path(path)
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": cifar_values(network.architecture),
        "options": list(network.options.bits),
        "policy": None if network.policy is None else [network.options[choice].name for choice in network.policy],
        "input": dataclasses.asdict(contract),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        write_whole(path, save(tensors, metadata={METADATA_KEY: json.dumps(values)}))
    else:
        buffer = io.BytesIO()
        torch.save({**values, "state_dict": tensors}, buffer)
        write_whole(path, buffer.getvalue())


@recognizer(lambda raw: raw.values.get("format") == FORMAT, marker="backbone.stem_conv.weight")
def load_native(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads a file that ``save_checkpoint`` wrote.

    Raises:
        CheckpointError: the file has another version or malformed values, or the tensors do not belong to the network
            that the values describe.
    """
    version = raw.values.get("version")
    if version not in (1, VERSION):
        raise CheckpointError(f"dfs-deploy checkpoint of version {version!r}, expected {VERSION}; update dfs-deploy")
    reader = TensorReader(raw.tensors, "dfs-deploy")
    try:
        architecture, recorded, saved, policy = _described(raw.values, facts)
        if facts.class_names is None:
            check_class_names(recorded.class_names, architecture.classes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        seen = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise CheckpointError(f"dfs-deploy checkpoint with malformed values ({seen}); save it again") from error
    if options is not None and options != saved:
        raise CheckpointError(f"the checkpoint's options are {saved}, not {options}; leave --options out")
    contract, corrections = corrected_input(recorded, facts)
    # A network is built only if the file has tensors for it.
    if _TENSORS_OF_A_BLOCK * len(architecture.blocks) > len(reader):
        raise CheckpointError(
            f"dfs-deploy checkpoint of a {architecture.name} with {len(reader)} tensors, too few for it; save it again"
        )
    network = without_values(
        cifar_resnet(**{**cifar_values(architecture), "image_shape": contract.shape}), saved, policy
    )
    state = {
        key: reader.take_counter(key) if key.endswith(COUNTER) else reader.take(key, tuple(tensor.shape))
        for key, tensor in network.state_dict().items()
    }
    reader.finish()
    return Checkpoint(fill(network, state), contract, FORMAT, corrections)


def _described(
    values: Mapping[str, Any], facts: CheckpointFacts
) -> tuple[Architecture, InputContract, Options, tuple[int, ...] | None]:
    """Architecture, input contract, options and policy from plain values."""
    architecture = cifar_resnet(**_tuples(values["architecture"]))
    record = _tuples(values["input"])
    if facts.class_names is not None and class_names_problem(record.get("class_names", ())):
        record["class_names"] = ()  # the caller's names replace names that no file can hold
    contract = InputContract(**record)
    options = Options(values["options"])
    if contract.shape != architecture.image_shape:
        raise ValueError(f"input of shape {contract.shape} for a network of {architecture.image_shape}")
    names = values.get("policy")
    if names is None:
        return architecture, contract, options, None
    if len(names) != architecture.gated_blocks:
        raise ValueError(f"a policy of {len(names)} options for {architecture.gated_blocks} gated blocks")
    return architecture, contract, options, parse_policy(list(names), options)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
