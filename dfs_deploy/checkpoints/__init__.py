"""Trained networks on disk: one recogniser per format. Nothing in a file is executed."""

from dfs_deploy.checkpoints import (  # registers the recognisers, in this order
    native,
    older,
    release,
    skipnet,
    skipnet_imagenet,
)
from dfs_deploy.checkpoints.facts import CheckpointFacts
from dfs_deploy.checkpoints.native import save_checkpoint
from dfs_deploy.checkpoints.plain import build_network
from dfs_deploy.checkpoints.registry import Checkpoint, load_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointFacts",
    "build_network",
    "load_checkpoint",
    "native",
    "older",
    "release",
    "save_checkpoint",
    "skipnet",
    "skipnet_imagenet",
]
