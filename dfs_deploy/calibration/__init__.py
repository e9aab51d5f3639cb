"""Ranges for INT8 engines, measured on what the gate really sends to each block."""

from dfs_deploy.calibration.methods import METHODS
from dfs_deploy.calibration.routing import (
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
