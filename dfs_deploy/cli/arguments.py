"""Arguments that several verbs take: their flags, how their text is read, and what is checked before any work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dfs_deploy.bundle.cache import PLACE
from dfs_deploy.errors import BundleError, UsageError
from dfs_deploy.options import TRAINED


def _use_cache(context: typer.Context, folder: Path | None) -> Path | None:
    """Sets the folder of the caches for this verb, and for the processes that it starts."""
    if folder is not None:
        context.with_resource(_environment(PLACE, str(folder.absolute())))
    return folder


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="A NAME.dfs directory; if left out, the only one in the current directory."),
]
BundlesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="BUNDLE...",
        help="NAME.dfs directories to compare, dynamic and static networks; if left out, the only one in the current"
        " directory.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, and no progress.")]
ThreadsOption = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads that one engine may use.")]
TorchThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads of PyTorch and of an engine.",
        show_default="as the machine grants PyTorch, 1 for an engine",
    ),
]
PlanOption = Annotated[
    bool,
    typer.Option("--plan/--no-plan", help="Use the choice of engines that bench --save-plan measured on this machine."),
]
PreparedOption = Annotated[
    bool,
    typer.Option(
        "--prepared/--no-prepared", help="Run engines prepared for this machine, and make them if there are none."
    ),
]


def _budget(text: str) -> float | str:
    """A budget as ``Runtime`` takes it."""
    try:
        return text if text == TRAINED else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}, expected a share, 0 to 1, or {TRAINED}") from None


BudgetOption = Annotated[
    Any,  # typer takes no union of types
    typer.Option(
        "--budget",
        metavar="SHARE",
        parser=_budget,
        help=f"Share of computation to hold, 0 to 1, as exported with --budgets; or {TRAINED}.",
        show_default="the bundle's accuracy budget, else as trained",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        callback=_use_cache,
        help="Folder for what is made once per machine.",
        show_default="$DFS_DEPLOY_CACHE, else beside the bundle",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of everything drawn at random.")]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Weights to take if the checkpoint has several, as in state_dict_ema.",
        show_default="not the averaged ones",
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar="M,M,M",
        help="Mean of each channel that training subtracted, for pixels from 0 to 1, as in 0.49,0.48,0.45.",
        show_default="the file's, else CIFAR-10's",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,S",
        help="Standard deviation of each channel, as in 0.25,0.24,0.26.",
        show_default="the file's, else CIFAR-10's",
    ),
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAMES",
        help="File with one class name per line, or names separated by commas, in the order of the outputs; or the word"
        " none.",
        show_default="the file's, else none",
    ),
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="HxW", help="Height and width of the images, as in 32x32.", show_default="the file's, else 32x32"
    ),
]
ResizeOption = Annotated[
    int | None,
    typer.Option(
        "--resize",
        metavar="N",
        min=0,
        help="Pixels to resize an image's shorter side to before its centre is cut out, as in 256 for 224x224; 0 to"
        " resize the whole image.",
        show_default="the file's; with resized crops 8/7 of the size",
    ),
]
InterpolationOption = Annotated[
    str | None,
    typer.Option(
        "--interpolation",
        metavar="NAME",
        help="Kind of resizing: bilinear or bicubic.",
        show_default="the file's, else bilinear",
    ),
]
NetworkHelp = (
    "Network by name: torchvision:NAME, timm:NAME, cifar-resnet:N, or package.module:function, which imports that"
    " module, from the current directory too, and runs the function."
)
NetworkOption = Annotated[str | None, typer.Option("--network", metavar="NAME", help=NetworkHelp, show_default=False)]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="PATH",
        help="State dict of the network, .pt, .pth or .safetensors; nothing in it is run.",
        show_default="random weights",
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(
        "--classes",
        metavar="N",
        min=1,
        help="Number of classes; other than the weights' gives the network a new final layer.",
        show_default="the weights', else the network's",
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="HxW",
        help="Height and width of images, as in 224x224, or one number for both.",
        show_default="what the network was made for",
    ),
]
BlocksOption = Annotated[
    str | None,
    typer.Option(
        "--blocks",
        metavar="CLASS|REGEX|NAMES",
        help="Modules that are blocks: names of classes or of modules, separated by commas, or a regular expression of"
        " modules' names.",
        show_default="found",
    ),
]
BlockOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--block",
        metavar="GLOB=LIST",
        help="Options of the blocks whose names match, as in 'layer1.*=full'; repeatable.",
        show_default=False,
    ),
]
DataHelp = "Data: an .npz with x and y, a folder of images by class, or a CIFAR archive's folder."


AgainstOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        metavar="BUNDLE",
        help="Bundle to compare with, as if it were named last; repeatable.",
        show_default=False,
    ),
]


def refuse_given(context: typer.Context, why: str, *names: str) -> None:
    """Refuses options that would have no effect, so that nobody relies on them.

    Args:
        context: context of the verb.
        why: rest of the message after the option: why it has no effect, and what to do.
        names: names of the verb's parameters.

    Raises:
        UsageError: one of them was given on the command line.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(option for option in context.command.params if option.name == name)
            flags = option.secondary_opts if context.params.get(name) is False else option.opts
            raise UsageError(f"{flags[0]} {why}")


def bundle_path(given: Path | None) -> Path:
    """The bundle that was named, or the one in the current directory.

    Raises:
        BundleError: something else was named; the message says what it is and which argument takes it.
        UsageError: none was named, and none or several are in the current directory.
    """
    from dfs_deploy.bundle import find_bundle, other_than_bundle

    if given is None:
        return find_bundle()
    other = other_than_bundle(given)
    if other is not None:
        raise BundleError(other)
    return given
