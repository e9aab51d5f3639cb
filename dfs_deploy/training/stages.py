"""The stages of training: what each one computes, and which parameters it moves (Section 3, Two-Step Procedure)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dfs_deploy.models import DFSNetwork, NetworkOutput, QuantizedConv2d
from dfs_deploy.training.deployed import Ranges, in_both_arithmetics
from dfs_deploy.training.forward import joint_forward
from dfs_deploy.training.recipe import Recipe, StageName

Forward = Callable[[Tensor], NetworkOutput]


def stage_optimizers(network: DFSNetwork, stage: StageName, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimizers of a stage: one for the backbone where it learns, then one for the gate where it learns."""
    optimizers: list[torch.optim.Optimizer] = []
    if stage != "gate":
        rate = recipe.backbone_lr if stage == "backbone" else recipe.joint_lr * _factor(stage, recipe)
        optimizers.append(_sgd(network.backbone, rate, recipe))
    if stage != "backbone" and network.gate is not None:
        rate = recipe.gate_lr if stage == "gate" else recipe.joint_gate_lr * _factor(stage, recipe)
        adam = recipe.gate_optimizer == "adam"
        optimizers.append(
            torch.optim.Adam(network.gate.parameters(), rate) if adam else _sgd(network.gate, rate, recipe)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _factor(stage: StageName, recipe: Recipe) -> float:
    return recipe.deploy_rate if stage == "deploy" else 1.0


def _sgd(module: nn.Module, rate: float, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        module.parameters(),
        rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def set_modes(network: DFSNetwork, stage: StageName, settled: bool) -> None:
    """Puts the modules in the mode of a stage.

    On the fixed backbone of the gate stage only the input ranges move, so that the quantised options compute something
    useful when joint training begins.

    Args:
        network: to change.
        stage: the stage.
        settled: whether normalisation and ranges stay as they are.
    """
    network.train(stage in ("backbone", "joint") and not settled)
    if stage == "gate":
        for module in network.modules():
            if isinstance(module, QuantizedConv2d):
                module.train()


@contextlib.contextmanager
def learning(network: DFSNetwork, stage: StageName) -> Iterator[None]:
    """Keeps gradients away from the part that a stage leaves alone."""
    fixed = {"backbone": network.gate, "gate": network.backbone}.get(stage)
    if fixed is not None:
        fixed.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def stage_forward(network: DFSNetwork, stage: StageName, compiled: bool, ranges: Ranges) -> Forward:
    """What a stage computes: the backbone in full precision, the gate's hard choice, or that in both arithmetics.

    Args:
        network: the network.
        stage: the stage.
        compiled: whether ``torch.compile`` compiles stage 0.
        ranges: of the deployed engines; asked for in stage 3 only.
    """
    if stage == "deploy":
        return lambda x: in_both_arithmetics(network, x, ranges)
    if stage != "backbone":
        return lambda x: joint_forward(network, x)
    backbone: Callable[[Tensor], Tensor] = network.backbone
    if compiled:
        backbone = torch.compile(network.backbone)

    def forward(x: Tensor) -> NetworkOutput:
        n, gated = len(x), network.architecture.gated_blocks
        return NetworkOutput(
            logits=backbone(x),
            path=torch.zeros((n, gated), dtype=torch.int64, device=x.device),
            scores=x.new_zeros((n, gated, len(network.options))),
            expected_cost=x.new_ones(n),
        )

    return forward


@torch.no_grad()
def standardize_gate(network: DFSNetwork, x: Tensor) -> None:
    """Scales the gate's embeddings so that over some images the LSTM sees mean 0 and deviation 1 in each feature.

    Args:
        network: with an untrained gate; put in evaluation mode. Without a gate, nothing happens.
        x: (N, C, H, W) float32, normalised, N at least 2.
    """
    network.eval()
    if network.gate is None:
        return
    features = network.backbone.stem(x)
    for block, embedding in zip(network.blocks, network.gate.embeddings, strict=False):
        assert isinstance(embedding, nn.Linear)  # noqa: S101 (for the type checker)
        features = block(features)
        embedded = embedding(features.mean((2, 3)))
        mean, deviation = embedded.mean(0), embedded.std(0).clamp_min(1e-6)
        embedding.weight.div_(deviation[:, None])
        embedding.bias.sub_(mean).div_(deviation)
