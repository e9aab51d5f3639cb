"""PyTorch reference model: what every engine and every runtime is compared with."""

from dfs_deploy.models.backbone import Backbone, BasicBlock, Projection, QuantizedConv2d
from dfs_deploy.models.gate import Gate, GateState, decide
from dfs_deploy.models.network import DFSNetwork, NetworkOutput, run_option
from dfs_deploy.models.quantize import fake_quantize, fake_quantize_weight

__all__ = [
    "Backbone",
    "BasicBlock",
    "DFSNetwork",
    "Gate",
    "GateState",
    "NetworkOutput",
    "Projection",
    "QuantizedConv2d",
    "decide",
    "fake_quantize",
    "fake_quantize_weight",
    "run_option",
]
