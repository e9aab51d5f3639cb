"""From PyTorch to ONNX: splitting, engines for each runtime, validation."""

from dfs_deploy.exporters.comparison import Comparison, compare
from dfs_deploy.exporters.pipeline import CALIBRATION_METHODS, RUNTIMES, Exported, export

__all__ = ["CALIBRATION_METHODS", "RUNTIMES", "Comparison", "Exported", "compare", "export"]
