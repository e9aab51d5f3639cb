"""Our own format: a dict of tensors and plain values, or ``.safetensors`` with the values in its header."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch

from dfs_deploy.architecture import Architecture
from dfs_deploy.checkpoints.reading import METADATA_KEY, RawCheckpoint
from dfs_deploy.checkpoints.registry import Checkpoint, recognizer
from dfs_deploy.errors import CheckpointError
from dfs_deploy.files import write_whole
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import Options, parse_policy
from dfs_deploy.preprocessing import InputContract

FORMAT = "dfs-deploy"
VERSION = 2
"""Version 2 added ``policy``; files of version 1, which have a gate, are read as before."""


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
        "architecture": dataclasses.asdict(network.architecture),
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
def load_native(raw: RawCheckpoint, options: Options | None) -> Checkpoint:
    """Reads what :func:`save_checkpoint` wrote."""
    version = raw.values.get("version")
    if version not in (1, VERSION):
        raise CheckpointError(f"dfs-deploy checkpoint of version {version!r}, expected {VERSION}; update dfs-deploy")
    try:
        architecture = Architecture(**_tuples(raw.values["architecture"]))
        contract = InputContract(**_tuples(raw.values["input"]))
        saved = Options(raw.values["options"])
        if contract.shape != architecture.image_shape:
            raise ValueError(f"input of shape {contract.shape} for a network of {architecture.image_shape}")
        names = raw.values.get("policy")
        policy = None if names is None else parse_policy(list(names), saved)
        network = DFSNetwork(architecture, saved, policy)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"dfs-deploy checkpoint with malformed values ({error}); save it again") from error
    if options is not None and options != saved:
        raise CheckpointError(f"the checkpoint's options are {saved}, not {options}; leave --options out")
    try:
        network.load_state_dict(dict(raw.tensors))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"dfs-deploy checkpoint whose tensors are not {architecture.name}'s: {first}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
        raise CheckpointError("dfs-deploy checkpoint with NaN or infinity in it; training diverged: use an earlier one")
    return Checkpoint(network, contract, FORMAT)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
