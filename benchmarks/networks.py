"""Random networks of a given geometry, exported. Weights do not matter for timing; reports say that they are random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset
from dfs_deploy.exporters import export
from dfs_deploy.exporters.probes import make_probes
from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract


def random_network(blocks_per_group: int, options: str = "skip,8,16,full", seed: int = 0) -> DFSNetwork:
    """A CIFAR ResNet-(6n+2) with random weights, and with statistics and ranges that fit its activations."""
    torch.manual_seed(seed)
    network = cifar_network(cifar_resnet((blocks_per_group,) * 3), Options.parse(options))
    with torch.no_grad():
        for name, weight in network.net.named_parameters():
            if name.endswith(".norm2.weight"):
                weight.fill_(0.3)  # keeps the residual sum from growing with depth
        network.train()
        for _ in range(10):
            network(torch.randn(32, *network.architecture.image_shape))
    return network.eval()


def random_bundle(blocks_per_group: int, folder: Path, options: str = "skip,8,16,full") -> Bundle:
    """Exports a random ResNet-(6n+2), calibrated on synthetic images, and returns the bundle."""
    network = random_network(blocks_per_group, options)
    contract = InputContract()
    checkpoint = folder / f"random-{blocks_per_group}.pt"
    save_checkpoint(checkpoint, network, contract)
    images = make_probes(contract, 0)
    data = Dataset(images, np.arange(len(images)) % network.architecture.classes, (), "synthetic images")
    out = folder / f"random-{blocks_per_group}.dfs"
    return export(checkpoint, out, calibration_data=data, calibration_samples=128).bundle
