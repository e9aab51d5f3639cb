"""``dfs-deploy adapt``: a checkpoint of a network by name with a gate beside it, without training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from dfs_deploy.cli.arguments import (
    BlockOptionsOption,
    BlocksOption,
    ClassesOption,
    ClassNamesOption,
    ImageSizeOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    NetworkHelp,
    ResizeOption,
    SeedOption,
    StdOption,
    WeightsKeyOption,
    WeightsOption,
)
from dfs_deploy.cli.console import output, print_json
from dfs_deploy.cli.named import planned, show_plan
from dfs_deploy.cli.process import command
from dfs_deploy.errors import UsageError
from dfs_deploy.io.text import first_line
from dfs_deploy.options import FULL_BITS, PRECISIONS, engine_precision
from dfs_deploy.system.libraries import required


def adapt(
    network: Annotated[str, typer.Option("--network", metavar="NAME", help=NetworkHelp, show_default=False)],
    weights: WeightsOption = None,
    weights_key: WeightsKeyOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    blocks: BlocksOption = None,
    block: BlockOptionsOption = None,
    options: Annotated[
        str, typer.Option(metavar="LIST", help="Options that the gate chooses from.")
    ] = "skip,8,16,full",
    gate: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="Kind of gate: lstm, which steps from block to block, or stateless, one per block."
        ),
    ] = "lstm",
    always: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=2,
            max=FULL_BITS,
            help="Bits of stem, head and skips.",
            show_default="8 if an option has 8 or fewer, else 32",
        ),
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    class_names: ClassNamesOption = None,
    resize: ResizeOption = None,
    interpolation: InterpolationOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Checkpoint to write, .pt or .safetensors.", show_default="NAME.pt"),
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Make a checkpoint of a network and an untrained gate, which chooses the most precise option of every block.

    It can be exported at once, calibrated, and trained later with train --start. With full among the options and
    --always 32 it computes what the network did before; else it rounds what runs in fewer bits, such as stem and head.
    """
    with required():
        import torch

        from dfs_deploy.checkpoints import CheckpointFacts, save_checkpoint
        from dfs_deploy.checkpoints.facts import check_class_names, corrected_input
        from dfs_deploy.models import adapt as adapted

    path = out or Path(f"{_stem(network)}.pt")
    if path.exists():
        raise UsageError(f"{path} exists, expected a new file; choose another with --out")
    facts = CheckpointFacts(mean=mean, std=std, class_names=class_names, resize=resize, interpolation=interpolation)
    torch.manual_seed(seed)
    made, plan = planned(network, weights, weights_key, classes, image_size, blocks, block or ())
    model = adapted(made.net, plan, options, cast('Literal["lstm", "stateless"]', gate), always=always)
    contract, _ = corrected_input(made.contract, facts)
    check_class_names(contract.class_names, model.architecture.classes)
    try:
        save_checkpoint(path, model, contract)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({first_line(error)}); choose another with --out") from error
    decided = len(model.architecture.decided(model.options))
    targets = {engine_precision(option, PRECISIONS) for option in model.options} | {"fp32"}
    wanted = ",".join(name for name in reversed(PRECISIONS) if name in targets)
    next_step = command("export", path, "--targets", wanted, "--calibration-data", "DATA")
    if json:
        print_json(
            {
                "checkpoint": str(path),
                "network": plan.network,
                "options": list(model.options.names),
                "decided": decided,
                "notes": list(made.notes),
            }
        )
        return
    show_plan(plan, made.notes)
    console = output()
    console.print(f"wrote {path}: {plan.network} whose gate decides about {decided} blocks among {model.options}")
    console.print(f"next: {next_step}")


def _stem(network: str) -> str:
    """Name of a file for a network: what follows the colon, or the module before it too."""
    origin, _, name = network.partition(":")
    words = [name] if origin in ("torchvision", "timm") else [origin.rpartition(".")[2], name]
    return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.") or "network"
