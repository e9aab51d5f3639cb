"""Trained networks on disk: one recogniser a format, none of which executes anything."""

from dfs_deploy.checkpoints import native, release, skipnet  # registers the recognisers, in this order
from dfs_deploy.checkpoints.native import save_checkpoint
from dfs_deploy.checkpoints.registry import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "native", "release", "save_checkpoint", "skipnet"]
