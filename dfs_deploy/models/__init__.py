"""PyTorch reference model: what every engine and every runtime is compared with."""

from dfs_deploy.models.adapt import adapt
from dfs_deploy.models.blocks import find_blocks
from dfs_deploy.models.cifar import CifarResNet, cifar_graphs, cifar_network
from dfs_deploy.models.gate import Gate, GateState, decide
from dfs_deploy.models.graph import BlockGraphs, Evaluation, Graph, NetworkGraphs, Node, Ranges
from dfs_deploy.models.network import DFSNetwork, NetworkBlock, NetworkOutput, run_option
from dfs_deploy.models.plan import Plan
from dfs_deploy.models.quantize import fake_quantize, fake_quantize_weight

__all__ = [
    "BlockGraphs",
    "CifarResNet",
    "DFSNetwork",
    "Evaluation",
    "Gate",
    "GateState",
    "Graph",
    "NetworkBlock",
    "NetworkGraphs",
    "NetworkOutput",
    "Node",
    "Plan",
    "Ranges",
    "adapt",
    "cifar_graphs",
    "cifar_network",
    "decide",
    "fake_quantize",
    "fake_quantize_weight",
    "find_blocks",
    "run_option",
]
