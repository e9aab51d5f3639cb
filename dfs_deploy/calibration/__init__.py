"""Ranges for INT8 engines, measured on what the gate really sends to each block."""

from dfs_deploy.calibration.methods import METHODS
from dfs_deploy.calibration.routing import CalibratedRange, TensorKey, TensorName, calibrate, from_checkpoint, group_of

__all__ = ["METHODS", "CalibratedRange", "TensorKey", "TensorName", "calibrate", "from_checkpoint", "group_of"]
