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
"""Version 2 added ``policy``; files of version 1, which have a gate, are read as before."""

_TENSORS_OF_A_BLOCK = 12
"""Least number of a block's tensors: two convolutions with weight and range, two normalisations with three or more."""


def save_checkpoint(path: str | Path, network: DFSNetwork, contract: InputContract) -> None:
    """Writes a network whole: to a temporary file, then renamed.

    It is made in memory first, so that what the file system refuses is an ``OSError``.

    Args:
        path: ends in ``.safetensors`` for that format; anything else is written by ``torch.save``.
        network: the network; its training mode does not matter.
        contract: how pixels become its input.
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


@recognizer(FORMAT, lambda raw: raw.values.get("format") == FORMAT)
def load_native(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: a file of another version, values that cannot be, or tensors that are not those of the network
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
    # What the values describe is built only if there are tensors for it.
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
    """The network that plain values describe, with its input, options and policy."""
    architecture = cifar_resnet(**_tuples(values["architecture"]))
    record = _tuples(values["input"])
    if facts.class_names is not None and class_names_problem(record.get("class_names", ())):
        record["class_names"] = ()  # those that are given go before names that no file can hold
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
