"""What a run begins with: the architecture that recipe and data ask for, and networks that were trained before."""

from __future__ import annotations

from collections.abc import Callable

from dfs_deploy.checkpoints import load_checkpoint
from dfs_deploy.errors import CheckpointError
from dfs_deploy.models import DFSNetwork
from dfs_deploy.network import Architecture, cifar_resnet
from dfs_deploy.training.data import Splits
from dfs_deploy.training.recipe import Recipe


def new_architecture(recipe: Recipe, splits: Splits) -> Architecture:
    """ResNet-(6n+2) for the classes and images of some data (He et al. 2016, Section 4.2)."""
    groups = (recipe.blocks_per_group,) * 3
    return cifar_resnet(groups, classes=splits.classes, image_shape=splits.contract().shape)


def begin_with(path: str, architecture: Architecture, say: Callable[[str], object] = lambda line: None) -> DFSNetwork:
    """Reads a trained network to begin with.

    Args:
        path: its checkpoint.
        architecture: of the network that is trained.
        say: called with each line on what was assumed about the checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
    """
    checkpoint = load_checkpoint(path, deployable=False)
    network = checkpoint.network
    if network.architecture != architecture:
        raise CheckpointError(
            f"{path} is another network than this job's: {network.architecture.beside(architecture)}; give a checkpoint"
            " of the same blocks, classes and image size"
        )
    for line in checkpoint.assumptions:
        say(f"assumed of {path}: {line}")
    return network
