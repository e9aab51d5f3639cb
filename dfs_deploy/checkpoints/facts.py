"""Input contract of a checkpoint: from the file, from the caller, or assumed and reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dfs_deploy.errors import UsageError
from dfs_deploy.preprocessing import (
    InputContract,
    class_names_problem,
    parse_class_names,
    parse_numbers,
    parse_size,
)


@dataclass(frozen=True)
class CheckpointFacts:
    """What the caller knows about a checkpoint; overrides the file and every assumption.

    Attributes:
        weights_key: name in messages of the weights to take, if the file has several, such as ``state_dict_ema``.
        mean: mean per channel for normalisation, of pixels scaled to 0..1; text such as ``0.49,0.48,0.45`` will do.
        std: standard deviation per channel, of the same pixels.
        class_names: a name per class, in the order of the network's outputs; empty for none. Text is a list separated
            by commas, or the path of a file with one name per line.
        input_size: height and width of the images, in pixels; text such as ``32x32`` will do.
        resize: length in pixels to which an image's shorter side is resized before its centre is cut out; 0 for no
            crop, which resizes an image to exactly that height and width.
        interpolation: kind of resizing, ``bilinear`` or ``bicubic``.

    Raises:
        UsageError: text that is none of these, or a mean or deviation of pixels from 0 to 255.
    """

    weights_key: str | None = None
    mean: Sequence[float] | str | None = None
    std: Sequence[float] | str | None = None
    class_names: Sequence[str] | str | Path | None = None
    input_size: Sequence[int] | str | None = None
    resize: int | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        read: dict[str, Callable[[Any], tuple[Any, ...]]] = {
            "mean": partial(parse_numbers, "--mean"),
            "std": partial(parse_numbers, "--std"),
            "class_names": parse_class_names,
            "input_size": partial(parse_size, "--input-size"),
        }
        for name, parse in read.items():
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, parse(given))


def assumed_input(
    channels: int, facts: CheckpointFacts, scripts: str, usual: InputContract | None = None, data: str = "CIFAR-10"
) -> tuple[InputContract, tuple[str, ...]]:
    """Input contract of a network whose file does not describe its input.

    Args:
        channels: channels of an image.
        facts: facts that the caller knows.
        scripts: owner of the training scripts whose values are assumed, such as ``SkipNet's``.
        usual: contract that is assumed; ``None`` for CIFAR-10's.
        data: name of the data that it belongs to.

    Returns:
        The contract, and one line per assumption in it.
    """
    assumptions = []
    usual = usual or InputContract()
    unsaid = [f"--{name}" for name in ("mean", "std") if getattr(facts, name) is None]
    if unsaid:
        values = " and ".join(f"{flag[2:]} {getattr(usual, flag[2:])}" for flag in unsaid)
        assumptions.append(
            f"pixels are normalised with {data}'s {values}, as in {scripts} scripts; else give {' and '.join(unsaid)}"
        )
    if facts.input_size is None:
        _, height, width = usual.shape
        cut = f", cut out of {usual.resize}" if usual.resize else ""
        assumptions.append(
            f"images have {height}x{width} pixels{cut}, as in {data.partition('-')[0]}; otherwise give --input-size"
        )
    if facts.class_names is None:
        assumptions.append("the file has no class names, so classes are numbers; give names with --class-names")
    return _with_facts(usual, channels, facts), tuple(assumptions)


def corrected_input(recorded: InputContract, facts: CheckpointFacts) -> tuple[InputContract, tuple[str, ...]]:
    """Input contract of a file, with the caller's corrections.

    Returns:
        The contract, and one line per value that differs from the file's.

    Raises:
        InputError: the facts are out of bounds.
    """
    contract = _with_facts(recorded, recorded.shape[0], facts)
    names = f"{len(contract.class_names)} class names" if contract.class_names else "no class names"
    words = {
        "shape": f"images of {contract.shape[1]}x{contract.shape[2]} pixels",
        "mean": f"mean {contract.mean}",
        "std": f"std {contract.std}",
        "class_names": names,
        "resize": "no crop" if contract.resize is None else f"a crop from {contract.resize} pixels on the shorter side",
        "interpolation": f"{contract.interpolation} resizing",
    }
    changed = [noun for key, noun in words.items() if getattr(contract, key) != getattr(recorded, key)]
    return contract, tuple(f"{noun}, as given, instead of the file's" for noun in changed)


def recorded_input(record: Mapping[str, Any], facts: CheckpointFacts) -> InputContract:
    """Input contract from the plain values of a file of our own.

    Raises:
        TypeError, ValueError: malformed values.
    """
    values = tuples(record)
    if facts.class_names is not None and class_names_problem(values.get("class_names", ())):
        values["class_names"] = ()  # the caller's names replace names that no file can hold
    return InputContract(**values)


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _with_facts(contract: InputContract, channels: int, facts: CheckpointFacts) -> InputContract:
    keys = ("mean", "std", "class_names", "resize", "interpolation")
    given: dict[str, Any] = {key: getattr(facts, key) for key in keys if getattr(facts, key) is not None}
    if facts.input_size is not None:
        contract = contract.of_size(parse_size("--input-size", facts.input_size))
    if "resize" in given:
        given["resize"] = given["resize"] or None
    return replace(contract, shape=(channels, *contract.shape[1:]), **given)


def check_class_names(names: Sequence[object], classes: int) -> None:
    """Raises UsageError unless there is one name per class, or none at all."""
    if names and len(names) != classes:
        raise UsageError(
            f"{len(names)} class names for a network of {classes} classes; give one per class, in the order of the"
            " outputs, or none: --class-names"
        )
