"""Input contract of a checkpoint: from the file, from the caller, or assumed and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dfs_deploy.errors import UsageError
from dfs_deploy.preprocessing import InputContract


@dataclass(frozen=True)
class CheckpointFacts:
    """What the caller knows about a checkpoint; overrides the file and every assumption.

    Attributes:
        weights_key: which of several weights in the file to take, by the name in messages, such as ``state_dict_ema``.
        mean: mean per channel for normalisation, of pixels scaled to 0..1.
        std: standard deviation per channel, of the same pixels.
        class_names: a name per class, in the order of the network's outputs; empty for none.
        input_size: height and width of the images, in pixels.
    """

    weights_key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    input_size: tuple[int, int] | None = None


def assumed_input(channels: int, facts: CheckpointFacts, scripts: str) -> tuple[InputContract, tuple[str, ...]]:
    """Input contract of a network whose file does not describe its input.

    Args:
        channels: channels of an image.
        facts: what the caller knows.
        scripts: owner of the training scripts whose values are assumed, such as ``SkipNet's``.

    Returns:
        The contract, and one line per assumption in it.
    """
    assumptions = []
    usual = InputContract()
    unsaid = [f"--{name}" for name in ("mean", "std") if getattr(facts, name) is None]
    if unsaid:
        values = " and ".join(f"{flag[2:]} {getattr(usual, flag[2:])}" for flag in unsaid)
        assumptions.append(
            f"pixels are normalised with CIFAR-10's {values}, as in {scripts} scripts; else give {' and '.join(unsaid)}"
        )
    if facts.input_size is None:
        assumptions.append("images have 32x32 pixels, as in CIFAR; otherwise give --input-size")
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
    }
    changed = [noun for key, noun in words.items() if getattr(contract, key) != getattr(recorded, key)]
    return contract, tuple(f"{noun}, as given, instead of the file's" for noun in changed)


def _with_facts(contract: InputContract, channels: int, facts: CheckpointFacts) -> InputContract:
    given = {key: getattr(facts, key) for key in ("mean", "std", "class_names") if getattr(facts, key) is not None}
    return replace(contract, shape=(channels, *(facts.input_size or contract.shape[1:])), **given)


def check_class_names(names: Sequence[object], classes: int) -> None:
    """Raises UsageError unless there is one name per class, or none at all."""
    if names and len(names) != classes:
        raise UsageError(
            f"{len(names)} class names for a network of {classes} classes; give one per class, in the order of the"
            " outputs, or none: --class-names"
        )
