"""The network that a run begins with: a CIFAR ResNet, one by name, one that was handed over, or a checkpoint's."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from dfs_deploy.checkpoints import CheckpointFacts, load_checkpoint
from dfs_deploy.checkpoints.plain import build_network
from dfs_deploy.errors import CheckpointError, DataError
from dfs_deploy.models import DFSNetwork, adapt, cifar_network, find_blocks
from dfs_deploy.models.named import named_network
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.job import Job
from dfs_deploy.training.splits import Splits

NETWORK_FILE = "network.pt"
"""A network that is no CIFAR ResNet, as the run began with it: whoever resumes the run needs no code of the user's."""


def fitted(job: Job, contract: InputContract | None, given: Mapping[str, Any]) -> Job:
    """The job with images that are made the input of its network.

    Args:
        job: the job.
        contract: input contract of the network; ``None`` for a CIFAR ResNet, which takes images as they are.
        given: ``size``, ``resize`` (0 for no crop) and ``interpolation``, those that were asked for; they stand above
            the contract.
    """
    geometry = dict(given)
    if contract is not None:
        contract = contract.of_size(given.get("size", contract.shape[1:]))
        own = {"size": contract.shape[1:], "resize": contract.resize, "interpolation": contract.interpolation}
        geometry = {**own, **given}
    return dataclasses.replace(job, **{**geometry, "resize": geometry.get("resize") or None})


def input_of(network: str, weights: str | None, size: tuple[int, int] | None) -> InputContract:
    """Input contract of a network by name.

    A contract that was assumed, such as ImageNet's for code of the user's, says nothing about images of another size:
    these are not cropped, unless that is usual for the data.

    Args:
        network: its name.
        weights: file of its weights, whose name tells torchvision's apart; ``None`` for random ones.
        size: height and width that images are going to have; ``None`` for the network's.
    """
    made = named_network(network, file="" if weights is None else Path(weights).name)
    if made.assumed is None or size in (None, made.contract.shape[1:]):
        return made.contract
    return dataclasses.replace(made.contract, resize=None)


def built(
    name: str, job: Job, splits: Splits, options: Options | None = None
) -> tuple[DFSNetwork, tuple[str, ...], bool]:
    """Makes a network by name for a job, with the blocks that were found in it.

    Args:
        name: its name.
        job: the job.
        splits: its data.
        options: its options; ``None`` for those of the job's recipe.

    Returns:
        The network, notes on what was assumed, and whether its final layer is a new one before trained weights.

    Raises:
        UsageError: a network that does not exist or has no block that can be proved.
        DependencyError: it is another package's, which is not installed.
        CheckpointError: weights that cannot be read, or that are another network's.
    """
    torch.manual_seed(job.seed)
    made = build_network(name, job.weights, splits.classes, job.size, job.weights_key)
    network = adapt(made.net, find_blocks(made.net, made.example), options or job.recipe.options)
    network.contract = contract = splits.contract(made.contract.mean, made.contract.std)
    return network, dataclasses.replace(made, contract=contract).notes, made.new_head


def begun(job: Job, splits: Splits, network: DFSNetwork | None, folder: Path | None) -> tuple[DFSNetwork, list[str]]:
    """The network of a run at its beginning, and what was assumed about it, one line each.

    Args:
        job: the job.
        splits: its data.
        network: the network that was handed over or built; ``None`` for a CIFAR ResNet, or to read it.
        folder: folder of a run that goes on, which holds the network; ``None`` for a new run.

    Raises:
        CheckpointError: a checkpoint to begin with cannot be read, or is of another architecture.
        DataError: the data have another number of classes or another size than the network's.
        DfsDeployError: as for ``built``.
    """
    recipe, notes = job.recipe, list[str]()
    if job.network is None:
        architecture = splits.architecture(recipe.blocks_per_group)
        torch.manual_seed(job.seed)
        network = cifar_network(architecture, recipe.options, recipe.policy_indices(architecture.gated_blocks))
    elif folder is not None:
        network = load_checkpoint(folder / NETWORK_FILE, deployable=False).network
    elif network is None:
        network, assumed, _ = built(job.network, job, splits)
        notes += assumed
    _check_data(network, splits)
    recipe.check_network(network.architecture)
    policy = recipe.policy_indices(network.architecture.gated_blocks)
    if policy is not None and network.policy is None:
        network = network.with_policy(policy, recipe.options)
    network.contract = contract_of(network, splits)
    for name in job.frozen:
        network.net.get_parameter(name).requires_grad_(False)
    network.freeze(job.frozen_modules)
    if folder is None:
        notes += _taken(job, network)
    return network, notes


def contract_of(network: DFSNetwork, splits: Splits) -> InputContract:
    """The input contract of a network: its own normalisation, if it has one, and the names of the data's classes."""
    own = network.contract
    return splits.contract() if own is None else splits.contract(own.mean, own.std)


def _check_data(network: DFSNetwork, splits: Splits) -> None:
    architecture, (height, width) = network.architecture, splits.train.image_size
    if architecture.classes != splits.classes:
        raise DataError(
            f"{splits.train.name} has {splits.classes} classes, and {architecture.name} {architecture.classes}; give a"
            " network with a final layer for the classes of the data"
        )
    if architecture.image_shape != (3, height, width):
        _, wanted, across = architecture.image_shape
        raise DataError(
            f"images of {height}x{width} pixels for {architecture.name}, which takes {architecture.image_shape}; resize"
            f" them to {wanted}x{across}"
        )


def _taken(job: Job, network: DFSNetwork) -> list[str]:
    """Takes the weights of the job's checkpoint, if it names one."""
    given = job.start or job.backbone
    if given is None:
        return []
    other, assumptions = begin_with(given, network, job.weights_key, gate=job.start is not None)
    if job.start is None:
        network.net.load_state_dict(other.net.state_dict())
        network.ranges.load_state_dict(other.ranges.state_dict())
    elif other.options == network.options:
        network.load_state_dict(other.state_dict())
    else:
        raise CheckpointError(
            f"{given} has the options {other.options}, expected {network.options}; give --options {other.options}, or"
            " take only its backbone with --backbone"
        )
    return assumptions


def begin_with(path: str, network: DFSNetwork, weights_key: str | None, gate: bool) -> tuple[DFSNetwork, list[str]]:
    """Reads the checkpoint of a trained network to begin with, and what was assumed about it, one line each.

    Args:
        path: the checkpoint.
        network: the network that it must be of.
        weights_key: name of the weights to take, if it holds several.
        gate: whether its gate is wanted too, and so the same choices at each block; or only its backbone.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
    """
    checkpoint = load_checkpoint(path, facts=CheckpointFacts(weights_key=weights_key), deployable=False)
    if (difference := _difference(network, checkpoint.network, gate)) is not None:
        raise CheckpointError(
            f"{path} is another network than this job's: {difference}; give a checkpoint of the same blocks, layers,"
            " classes and image size"
        )
    return checkpoint.network, [f"assumed of {path}: {line}" for line in checkpoint.assumptions]


def _difference(ours: DFSNetwork, theirs: DFSNetwork, gate: bool) -> str | None:
    """What another network has in place of ours, in words; ``None`` if its weights, and its gate if wanted, fit."""
    wanted, seen = ours.architecture.without_macs(), theirs.architecture.without_macs()
    if not gate:
        seen = msgspec.structs.replace(seen, gate=wanted.gate)
    pairs = itertools.zip_longest(_facts(theirs), _facts(ours), fillvalue=("nothing", None))
    unlike = next(((one, other) for one, other in pairs if one != other), None)
    if seen != wanted and (gate or unlike is not None):
        return seen.beside(wanted)
    if unlike is None:
        return None
    (one, _), (other, _) = unlike
    return f"{one}, expected {other}" if one != other else f"{one} with other settings"


def _facts(network: DFSNetwork) -> list[tuple[str, object]]:
    """All that tells a network's static part from another's, each with its words: images, layers and tensors."""
    image_shape, state = network.architecture.image_shape, network.net.state_dict()
    return [
        (f"images of shape {image_shape}", image_shape),
        *((f"{node.operator} {node.name}", node) for node in network.graphs.whole.nodes),
        *((f"{name} of shape {tuple(state[name].shape)}", None) for name in sorted(state)),
    ]
