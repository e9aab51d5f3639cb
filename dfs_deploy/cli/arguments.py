"""Arguments that several verbs take, spelled once."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from dfs_deploy.bundle.cache import PLACE
from dfs_deploy.errors import BundleError, UsageError
from dfs_deploy.io.text import first_line


def _use_cache(context: typer.Context, folder: Path | None) -> Path | None:
    """Names the folder of the caches for this verb, and for the processes that it starts."""
    if folder is not None:
        before = os.environ.get(PLACE)
        os.environ[PLACE] = str(folder.absolute())
        context.call_on_close(lambda: _name_cache(before))
    return folder


def _name_cache(folder: str | None) -> None:
    if folder is None:
        os.environ.pop(PLACE, None)
    else:
        os.environ[PLACE] = folder


BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[BUNDLE]", help="A NAME.dfs directory; the one in the current directory when left out."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads that one engine may use.")]
TorchThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads of PyTorch and of an engine.",
        show_default="as the machine grants PyTorch, 1 for an engine",
    ),
]
PlanOption = Annotated[
    bool, typer.Option("--plan/--no-plan", help="Use the plan that bench --save-plan measured on this machine.")
]
PreparedOption = Annotated[
    bool,
    typer.Option("--prepared/--no-prepared", help="Run engines prepared for this machine, made where there are none."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", help="Computation to hold, 0 to 1, as calibrated at export.", show_default="as trained"),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        callback=_use_cache,
        help="Folder for what is made once on a machine; else $DFS_DEPLOY_CACHE, else beside the bundle.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        help="Which weights in the checkpoint to take, if there are several, as in state_dict_ema.",
        show_default="not the averaged ones",
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        help="Mean of each channel that pixels were normalised with, 0 to 1, as in 0.49,0.48,0.45.",
        show_default="the file's, else CIFAR-10's",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        help="Standard deviation of each channel, in the same way.", show_default="the file's, else CIFAR-10's"
    ),
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        help="A file with a class name per line, or names separated by commas, in the order of the outputs; or none.",
        show_default="the file's, else none",
    ),
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(help="Height and width of the images, as in 32x32.", show_default="the file's, else 32x32"),
]
DataHelp = "An .npz with x and y, a folder of images by class, or a CIFAR archive's folder."


AgainstOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        help="A bundle of a network that was trained to be static, which the verdict takes in; may be given again.",
        show_default="none",
    ),
]


def refuse_given(context: typer.Context, why: str, *names: str) -> None:
    """Refuses options that would change nothing, so that nobody believes they did.

    Args:
        context: context of the verb.
        why: what they mean nothing with or without, and what to do.
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


_MOST_NAMES_BYTES = 8 << 20


def parse_numbers(flag: str, text: str) -> tuple[float, ...]:
    """Reads the mean or deviation of each channel, separated by commas.

    Raises:
        UsageError: it is anything else, or of pixels from 0 to 255, whose network would see every image as black.
    """
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}, expected a number per channel, as in 0.49,0.48,0.45") from error
    if any(1.0 < number < math.inf for number in numbers):
        raise UsageError(f"{flag} {text!r}, expected that of pixels from 0 to 1; divide it by 255 if it is of 0 to 255")
    return numbers


def parse_size(flag: str, text: str) -> tuple[int, int]:
    """Reads height and width in pixels, as in ``32x32``; raises UsageError for anything else."""
    height, _, width = text.partition("x")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 6 for part in (height, width)):
        raise UsageError(f"{flag} {text!r}, expected height and width in pixels, as in 32x32")
    return int(height), int(width)


def parse_class_names(text: str) -> tuple[str, ...]:
    """Reads names separated by commas, a file with a name per line, or the word ``none``.

    Raises:
        UsageError: neither, or the file cannot be read as UTF-8.
    """
    from dfs_deploy.io.files import read_file

    if text == "none":
        return ()
    if "," in text:
        return tuple(name.strip() for name in text.split(","))
    expected = "expected a file with a class name per line, names separated by commas, or none"
    try:
        lines = read_file(Path(text), _MOST_NAMES_BYTES).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--class-names {text!r} cannot be read ({first_line(error)}), {expected}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UsageError(f"--class-names {text!r} is an empty file, {expected}")
    return tuple(names)
