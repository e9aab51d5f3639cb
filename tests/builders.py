"""Small networks and state dicts of every format, with seeded values; the key lists are those of each format's classes.

The lists are written out here, not taken from the package, so that a reader which asks for other keys fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dfs_deploy.models import DFSNetwork, cifar_network
from dfs_deploy.network import cifar_resnet, cifar_values
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract

Shapes = dict[str, tuple[int, ...]]

EMBEDDING = 10
HIDDEN = 10


def norm_shapes(name: str, channels: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def quantized_conv_shapes(name: str, shape: tuple[int, ...]) -> Shapes:
    return {
        f"{name}.weight": shape,
        f"{name}.quantize_input.running_min": (1,),
        f"{name}.quantize_input.running_max": (1,),
    }


def lstm_shapes(name: str) -> Shapes:
    return {
        f"{name}.weight_ih_l0": (4 * HIDDEN, EMBEDDING),
        f"{name}.weight_hh_l0": (4 * HIDDEN, HIDDEN),
        f"{name}.bias_ih_l0": (4 * HIDDEN,),
        f"{name}.bias_hh_l0": (4 * HIDDEN,),
    }


def release_shapes(
    groups: tuple[int, int, int] = (2, 1, 1), options: int = 4, classes: int = 10, width: int = 4
) -> Shapes:
    """Keys and shapes of a gated DFS model of the authors' release, without aliases."""
    shapes = quantized_conv_shapes("conv1", (width, 3, 3, 3)) | norm_shapes("bn1", width)
    inputs = width
    for group, count in enumerate(groups, start=1):
        channels = width * 2 ** (group - 1)
        for place in range(count):
            block = f"group{group}_layer{place}"
            shapes |= quantized_conv_shapes(f"{block}.conv1", (channels, inputs, 3, 3))
            shapes |= norm_shapes(f"{block}.bn1", channels)
            shapes |= quantized_conv_shapes(f"{block}.conv2", (channels, channels, 3, 3))
            shapes |= norm_shapes(f"{block}.bn2", channels)
            shapes |= norm_shapes(f"{block}.bn3", channels)
            if group > 1 and place == 0:
                shapes |= quantized_conv_shapes(f"{block}.downsample", (channels, inputs, 1, 1))
            gate = f"group{group}_gate{place}.1"
            shapes |= {f"{gate}.weight": (EMBEDDING, channels, 1, 1), f"{gate}.bias": (EMBEDDING,)}
            inputs = channels
    shapes |= lstm_shapes("control.rnn_one")
    shapes |= {"control.proj.weight": (options, HIDDEN), "control.proj.bias": (options,)}
    return shapes | {"fc.weight": (classes, 4 * width), "fc.bias": (classes,)}


def skipnet_shapes(groups: tuple[int, int, int] = (2, 1, 1), classes: int = 10, width: int = 4) -> Shapes:
    """Keys and shapes of a CIFAR SkipNet with a recurrent gate, without aliases."""
    shapes: Shapes = {"conv1.weight": (width, 3, 3, 3)} | norm_shapes("bn1", width)
    inputs = width
    for group, count in enumerate(groups, start=1):
        channels = width * 2 ** (group - 1)
        for place in range(count):
            block = f"group{group}_layer{place}"
            shapes |= {f"{block}.conv1.weight": (channels, inputs, 3, 3)} | norm_shapes(f"{block}.bn1", channels)
            shapes |= {f"{block}.conv2.weight": (channels, channels, 3, 3)} | norm_shapes(f"{block}.bn2", channels)
            if group > 1 and place == 0:
                shapes |= {f"{block}.downsample.0.weight": (channels, inputs, 1, 1)}
                shapes |= norm_shapes(f"{block}.downsample.1", channels)
            gate = f"group{group}_gate{place}.1"
            shapes |= {f"{gate}.weight": (EMBEDDING, channels, 1, 1), f"{gate}.bias": (EMBEDDING,)}
            inputs = channels
    shapes |= lstm_shapes("control.rnn")
    shapes |= {"control.proj.weight": (1, HIDDEN), "control.proj.bias": (1,)}
    return shapes | {"fc.weight": (classes, 4 * width), "fc.bias": (classes,)}


def skipnet_imagenet_shapes(
    depths: tuple[int, int, int, int] = (1, 2, 1, 1), bottleneck: bool = True, classes: int = 12, width: int = 4
) -> Shapes:
    """Keys and shapes of an ImageNet SkipNet with a recurrent gate, without aliases."""
    shapes: Shapes = {"conv1.weight": (width, 3, 7, 7)} | norm_shapes("bn1", width)
    inputs = width
    for group, count in enumerate(depths, start=1):
        inner = width * 2 ** (group - 1)
        outputs = 4 * inner if bottleneck else inner
        for place in range(count):
            block = f"group{group}_layer{place}"
            basic = [(inner, inputs, 3, 3), (inner, inner, 3, 3)]
            three = [(inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)]
            for index, shape in enumerate(three if bottleneck else basic, start=1):
                shapes |= {f"{block}.conv{index}.weight": shape} | norm_shapes(f"{block}.bn{index}", shape[0])
            if place == 0 and (group > 1 or bottleneck):
                shapes |= {f"{block}.downsample.0.weight": (outputs, inputs, 1, 1)}
                shapes |= norm_shapes(f"{block}.downsample.1", outputs)
            gate = f"group{group}_gate{place}.1"
            shapes |= {f"{gate}.weight": (EMBEDDING, outputs, 1, 1), f"{gate}.bias": (EMBEDDING,)}
            inputs = outputs
    shapes |= lstm_shapes("control.rnn")
    shapes |= {"control.proj.weight": (1, HIDDEN, 1, 1), "control.proj.bias": (1,)}
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def plausible_values(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Values such as training leaves: positive variances, ranges from 0 up, a gate whose scores differ."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1234)
        elif key.endswith("running_min"):
            state[key] = torch.zeros(shape)
        elif key.endswith("running_max"):
            state[key] = uniform(shape, 1.0, 4.0)
        elif key.endswith("running_var"):
            state[key] = uniform(shape, 0.5, 1.5)
        elif ".bn" in key or key.startswith("bn") or ".downsample.1." in key:
            state[key] = uniform(shape, 0.5, 1.5) if key.endswith("weight") else uniform(shape, -0.3, 0.3)
        elif len(shape) == 4 and "gate" not in key and "control" not in key:
            state[key] = torch.randn(shape, generator=generator) * (2.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            # Weights that outweigh the biases, so that images take different paths.
            state[key] = torch.randn(shape, generator=generator) * (0.3 if "bias" in key else 2.0)
    return state


def release_state_dict(
    groups: tuple[int, int, int] = (2, 1, 1), options: int = 4, classes: int = 10, seed: int = 0, width: int = 4
) -> dict[str, Tensor]:
    """A gated DFS model of the release, with its aliases."""
    state = plausible_values(release_shapes(groups, options, classes, width), seed)
    for group in (2, 3):
        for alias, original in ((f"group{group}_ds0.", "downsample."), (f"group{group}_bn0.", "bn3.")):
            prefix = f"group{group}_layer0.{original}"
            state |= {alias + key.removeprefix(prefix): state[key] for key in list(state) if key.startswith(prefix)}
    return state


def skipnet_state_dict(
    groups: tuple[int, int, int] = (2, 1, 1), classes: int = 10, seed: int = 0, width: int = 4
) -> dict[str, Tensor]:
    """A CIFAR SkipNet with a recurrent gate, with its aliases."""
    state = plausible_values(skipnet_shapes(groups, classes, width), seed)
    for group in (2, 3):
        prefix = f"group{group}_layer0.downsample."
        state |= {
            f"group{group}_ds0." + key.removeprefix(prefix): state[key] for key in list(state) if key.startswith(prefix)
        }
    return state


def skipnet_imagenet_state_dict(
    depths: tuple[int, int, int, int] = (1, 2, 1, 1),
    bottleneck: bool = True,
    classes: int = 12,
    seed: int = 0,
    width: int = 4,
) -> dict[str, Tensor]:
    """An ImageNet SkipNet with a recurrent gate, with its aliases."""
    state = plausible_values(skipnet_imagenet_shapes(depths, bottleneck, classes, width), seed)
    for group in (1, 2, 3, 4):
        prefix = f"group{group}_layer0.downsample."
        state |= {
            f"group{group}_ds0." + key.removeprefix(prefix): state[key] for key in list(state) if key.startswith(prefix)
        }
    return state


def save_release(path: Path, state: Mapping[str, Tensor], **values: Any) -> Path:
    """Writes a state dict as the release's and SkipNet's scripts do, from a DataParallel model."""
    content = {"iter": 100, "arch": "cifar10_rnn_gate_38", "best_prec1": 71.0, **values}
    torch.save({**content, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def small_network(
    options: Options | str = "skip,8,16,full",
    blocks: int = 1,
    classes: int = 10,
    size: tuple[int, int] = (8, 8),
    seed: int = 0,
    widths: tuple[int, ...] = (4, 8, 16),
) -> DFSNetwork:
    """A network in evaluation mode with random weights, statistics and ranges, whose images take different paths."""
    options = Options.parse(options) if isinstance(options, str) else options
    architecture = cifar_resnet((blocks,) * len(widths), widths, classes, (3, *size))
    generator = torch.Generator().manual_seed(seed)
    network = cifar_network(architecture, options)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.startswith("ranges."):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith("num_batches_tracked"):
                continue
            if key.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif ".conv" in key or "stem_conv" in key:
                value.copy_(noise * (2.0 / value[0].numel()) ** 0.5)
                low, high = network.ranges.of(key.removeprefix("net.").removesuffix(".weight"))
                low.copy_(-0.1 * torch.randn(1, generator=generator).abs())
                high.copy_(0.5 + torch.randn(1, generator=generator).abs())
            elif "norm" in key:
                value.copy_(1.0 + 0.2 * noise if key.endswith("weight") else 0.2 * noise)
            elif key.startswith("gate."):
                value.copy_((0.3 if "bias" in key else 2.0) * noise)
            else:
                value.copy_(noise)
    return network.eval()


def random_images(count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> Tensor:
    """(count, 3, H, W) float32, as normalised images; each of another brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, *size, generator=generator)
    contrast, brightness = torch.rand(2, count, 1, 1, 1, generator=generator)
    return images * 2.0 * contrast + 3.0 * (brightness - 0.5)


def older_content(network: DFSNetwork, contract: InputContract, version: int = 2) -> dict[str, Any]:
    """A CIFAR network as versions 1 and 2 of our own format held it: each convolution has its own input range."""
    tensors: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if key.startswith("net."):
            tensors[f"backbone.{key.removeprefix('net.')}"] = value.clone()
        elif key.startswith("gate."):
            tensors[key] = value.clone()
    for name in network.ranges.names:
        low, high = network.ranges.of(name)
        tensors |= {f"backbone.{name}.low": low.clone(), f"backbone.{name}.high": high.clone()}
    policy = None if network.policy is None else [network.options[choice].name for choice in network.policy]
    described = {"shape": contract.shape, "mean": contract.mean, "std": contract.std}
    return {
        "format": "dfs-deploy",
        "version": version,
        "architecture": cifar_values(network.architecture),
        "options": list(network.options.bits),
        **({} if version == 1 else {"policy": policy}),
        "input": {**described, "class_names": contract.class_names},
        "state_dict": tensors,
    }


def save_older(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes what ``older_content`` made, in the kind of file that the name says."""
    if path.suffix == ".safetensors":
        values = {key: value for key, value in content.items() if key != "state_dict"}
        save_file(dict(content["state_dict"]), path, {"dfs_deploy": json.dumps(values)})
    else:
        torch.save(dict(content), path)
    return path
