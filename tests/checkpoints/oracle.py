"""What a network of the authors' release or of a SkipNet computes, straight from its state dict: a second opinion.

Written from the formats' description, in double precision, one image at a time; it shares no code with the package.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def quantize(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return ((x.clamp(low, high) - low) / step).round() * step + low


class GroupsOracle:
    """Runs one of the three formats; ImageNet's SkipNet has four groups behind a stem with a pool.

    Args:
        state: without ``module.``.
        bits: of each option; for SkipNet ``(0, 32)``.
    """

    def __init__(self, state: Mapping[str, Tensor], bits: Sequence[int]) -> None:
        self.state = {key: value.double() for key, value in state.items()}
        self.bits = tuple(bits)
        self.release = "control.rnn_one.weight_ih_l0" in state
        self.rnn = "control.rnn_one" if self.release else "control.rnn"
        self.imagenet = any(key.startswith("group4_") for key in state)

    def conv(self, x: Tensor, name: str, stride: int, bits: int) -> Tensor:
        weight = self.state[f"{name}.weight"]
        if bits < 32:
            ends = (self.state[f"{name}.quantize_input.running_{end}"] for end in ("min", "max"))
            x = quantize(x, *ends, bits)
            weight = quantize(weight, weight.min(), weight.max(), bits)
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def stride(self, block: str) -> int:
        return 1 if block.startswith("group1") or not block.endswith("layer0") else 2

    def shortcut(self, x: Tensor, block: str, bits: int) -> Tensor:
        if f"{block}.downsample.weight" in self.state:
            return self.norm(self.conv(x, f"{block}.downsample", 2, bits), f"{block}.bn3")
        if f"{block}.downsample.0.weight" in self.state:
            projected = self.conv(x, f"{block}.downsample.0", self.stride(block), bits)
            return self.norm(projected, f"{block}.downsample.1")
        return x

    def block(self, x: Tensor, block: str, bits: int) -> Tensor:
        if bits == 0:
            return self.shortcut(x, block, 32)
        strides = [self.stride(block), 1]
        if f"{block}.conv3.weight" in self.state:
            strides = [1, *strides]
        y = x
        for index, stride in enumerate(strides, start=1):
            y = functional.relu(y) if index > 1 else y
            y = self.norm(self.conv(y, f"{block}.conv{index}", stride, bits), f"{block}.bn{index}")
        return functional.relu(y + self.shortcut(x, block, bits))

    def lstm(self) -> nn.LSTM:
        weights = {key.removeprefix(f"{self.rnn}."): v for key, v in self.state.items() if key.startswith(self.rnn)}
        lstm = nn.LSTM(weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1]).double()
        lstm.load_state_dict(weights)
        return lstm

    def choose(self, scores: Tensor) -> int:
        if self.release:
            return int(scores.argmax())
        return int(torch.sigmoid(scores)[0] > 0.5)

    @torch.no_grad()
    def run(self, image: Tensor) -> tuple[Tensor, list[int], list[Tensor]]:
        """Maps (3, H, W) to (classes,) logits, the choice for each gated block, and the scores."""
        lstm, memory = self.lstm(), None
        names = [
            f"group{group}_layer{place}"
            for group in (1, 2, 3, 4)
            for place in range(100)
            if f"group{group}_layer{place}.conv1.weight" in self.state
        ]
        x = functional.relu(self.norm(self.conv(image.double()[None], "conv1", 2 if self.imagenet else 1, 32), "bn1"))
        x = functional.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        x = self.block(x, names[0], 32)
        path, seen = [], []
        for before, after in itertools.pairwise(names):
            gate = before.replace("layer", "gate") + ".1"
            pooled = functional.avg_pool2d(x, x.shape[2:])
            embedded = functional.conv2d(pooled, self.state[f"{gate}.weight"], self.state[f"{gate}.bias"])
            output, memory = lstm(embedded.reshape(1, 1, -1), memory)
            scores = functional.linear(
                output.flatten(), self.state["control.proj.weight"].flatten(1), self.state["control.proj.bias"]
            )
            path.append(self.choose(scores))
            seen.append(scores)
            x = self.block(x, after, self.bits[path[-1]])
        return functional.linear(x.mean((2, 3)), self.state["fc.weight"], self.state["fc.bias"])[0], path, seen
