"""Ranges for INT8 engines, measured on what the gate really sends to each block."""

from dfs_deploy.calibration.methods import METHODS
from dfs_deploy.calibration.routing import (
    ALWAYS,
    STATIC,
    CalibratedRange,
    Range,
    Ranges,
    TensorKey,
    block_ranges,
    calibrate,
    calibrate_static,
    from_checkpoint,
)

__all__ = [
    "ALWAYS",
    "METHODS",
    "STATIC",
    "CalibratedRange",
    "Range",
    "Ranges",
    "TensorKey",
    "block_ranges",
    "calibrate",
    "calibrate_static",
    "from_checkpoint",
]
