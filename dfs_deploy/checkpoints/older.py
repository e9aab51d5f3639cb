"""Versions 1 and 2 of our own format, which describe CIFAR ResNets of basic blocks by a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dfs_deploy.checkpoints.facts import CheckpointFacts, check_class_names, corrected_input, recorded_input, tuples
from dfs_deploy.checkpoints.reading import FORMAT, OLDER_VERSIONS
from dfs_deploy.checkpoints.registry import Checkpoint, recognizer
from dfs_deploy.checkpoints.tensors import COUNTER, TensorReader, fill, without_values
from dfs_deploy.checkpoints.weights import RawCheckpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.io.text import first_line
from dfs_deploy.models import cifar_network
from dfs_deploy.network import Architecture, cifar_resnet, cifar_values
from dfs_deploy.options import Options, parse_policy
from dfs_deploy.preprocessing import InputContract

_TENSORS_OF_A_BLOCK = 12
"""Fewest tensors of a block: two convolutions with weight and range, two normalisations with at least three each."""


@recognizer(
    lambda raw: raw.values.get("format") == FORMAT and raw.values.get("version") in OLDER_VERSIONS,
    marker="backbone.stem_conv.weight",
)
def load_older(raw: RawCheckpoint, options: Options | None, facts: CheckpointFacts) -> Checkpoint:
    """Reads a file of version 1 or 2.

    Raises:
        CheckpointError: malformed values, or tensors that do not belong to the network that the values describe.
    """
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
    resized = cifar_resnet(**{**cifar_values(architecture), "image_shape": contract.shape})
    network = without_values(lambda: cifar_network(resized, saved, policy))
    state = {}
    for key, tensor in network.state_dict().items():
        owner, _, name = key.partition(".")
        if owner == "ranges":  # each convolution had its own
            ends = [reader.take(f"backbone.{conv}.{name}", (1,)) for conv in network.ranges.names]
            state[key] = torch.cat(ends)
            continue
        was = f"backbone.{name}" if owner == "net" else key
        state[key] = reader.take_counter(was) if key.endswith(COUNTER) else reader.take(was, tuple(tensor.shape))
    reader.finish()
    return Checkpoint(fill(network, state), contract, FORMAT, corrections)


def _described(
    values: Mapping[str, Any], facts: CheckpointFacts
) -> tuple[Architecture, InputContract, Options, tuple[int, ...] | None]:
    """Architecture, input contract, options and policy from plain values."""
    architecture = cifar_resnet(**tuples(values["architecture"]))
    contract = recorded_input(values["input"], facts)
    options = Options(values["options"])
    if contract.shape != architecture.image_shape:
        raise ValueError(f"input of shape {contract.shape} for a network of {architecture.image_shape}")
    names = values.get("policy")
    if names is None:
        return architecture, contract, options, None
    if len(names) != architecture.gated_blocks:
        raise ValueError(f"a policy of {len(names)} options for {architecture.gated_blocks} gated blocks")
    return architecture, contract, options, parse_policy(list(names), options)
