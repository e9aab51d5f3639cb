"""What a gated block may do for one input, what that costs, and which engine serves it.

An *option* is a bitwidth: 0 bits skip the block, 32 bits run it in full precision, and any bitwidth between runs it
with its weights and activations quantised (Section 3 of "Fractional Skipping", AAAI 2020, Equation 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

from dfs_deploy.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FULL_BITS = 32
"""Bitwidth of full precision: IEEE float32."""

Precision = Literal["int8", "fp16", "fp32"]

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")
"""Engine precisions, least precise first; the names that ``--targets`` takes."""

# int() itself refuses thousands of digits, with an error of its own.
_MOST_DIGITS = 9

_NAMED_BITS = {"skip": 0, "full": FULL_BITS, "keep": FULL_BITS}


@dataclass(frozen=True, order=True)
class Option:
    """One thing that a gated block may do.

    Attributes:
        bits: 0 (skip), 2 to 31 (quantised) or 32 (full precision).
    """

    bits: int

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not (self.bits == 0 or 2 <= self.bits <= FULL_BITS):
            raise OptionError(
                f"option of {self.bits!r} bits, expected 0 (skip) or 2 to {FULL_BITS}; mend the option list"
            )

    @property
    def name(self) -> str:
        """``skip``, ``full``, or the bitwidth as digits."""
        return {0: "skip", FULL_BITS: "full"}.get(self.bits, str(self.bits))

    @property
    def skips(self) -> bool:
        """Whether the block is left out."""
        return self.bits == 0

    @property
    def quantized(self) -> bool:
        """Whether weights and activations are rounded to a grid."""
        return 0 < self.bits < FULL_BITS

    @property
    def cost(self) -> float:
        """Computation relative to the full-precision block, ``(bits / 32) ** 2`` (Section 4, Metrics)."""
        return (self.bits / FULL_BITS) ** 2


class Options(Sequence[Option]):
    """The options a network's gate chooses from, in the order of the gate's scores.

    Args:
        bits: one bitwidth an option. At least two options, no bitwidth twice.

    Raises:
        OptionError: a bitwidth that cannot be, a duplicate, or fewer than two options.
    """

    def __init__(self, bits: Iterable[int]) -> None:
        # No more than one beyond the number of bitwidths, one of which is then there twice.
        self._options = tuple(Option(b) for b in itertools.islice(bits, FULL_BITS + 1))
        if len(self._options) < 2:
            raise OptionError(f"{len(self._options)} option(s), expected at least 2, as in 'skip,8,16,full'")
        if len(set(self._options)) != len(self._options):
            raise OptionError(f"an option stands twice in '{self}'; give each once")

    @classmethod
    def parse(cls, text: str) -> Options:
        """Reads a list such as ``skip,8,16,full``.

        Raises:
            OptionError: a word that is neither ``skip``, ``full`` nor a bitwidth.
        """
        bits = []
        for word in (part.strip().lower() for part in text.split(",")):
            if word in _NAMED_BITS:
                bits.append(_NAMED_BITS[word])
            elif word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS:
                bits.append(int(word))
            else:
                raise OptionError(f"unknown option {word!r}, expected skip, full or a bitwidth, as in 'skip,8,16,full'")
        return cls(bits)

    @property
    def bits(self) -> tuple[int, ...]:
        """The bitwidths, in order."""
        return tuple(option.bits for option in self._options)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(option.name for option in self._options)

    @property
    def costs(self) -> tuple[float, ...]:
        """The costs, in order; each between 0 and 1."""
        return tuple(option.cost for option in self._options)

    @overload
    def __getitem__(self, index: int) -> Option: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Option, ...]: ...

    def __getitem__(self, index: int | slice) -> Option | tuple[Option, ...]:
        return self._options[index]

    def __len__(self) -> int:
        return len(self._options)

    def __iter__(self) -> Iterator[Option]:
        return iter(self._options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and other._options == self._options

    def __hash__(self) -> int:
        return hash(self._options)

    def __str__(self) -> str:
        return ",".join(self.names)

    def __repr__(self) -> str:
        return f"Options.parse({str(self)!r})"


def parse_policy(names: Sequence[str], options: Options) -> tuple[int, ...]:
    """Reads a static policy, the name of an option for each gated block.

    Returns:
        An index into ``options`` for each block.

    Raises:
        OptionError: a name that is not among the options.
    """
    known = options.names
    for name in names:
        if name not in known:
            raise OptionError(f"policy with option {name!r}, expected one of {options} for each gated block")
    return tuple(known.index(name) for name in names)


def parse_targets(text: str) -> tuple[Precision, ...]:
    """Reads a list of engine precisions such as ``fp32,fp16,int8``.

    Returns:
        The precisions, least precise first.

    Raises:
        OptionError: an unknown precision, or none for full precision.
    """
    words = {word.strip().lower() for word in text.split(",")}
    unknown = sorted(words - set(PRECISIONS))
    if unknown:
        raise OptionError(f"unknown target {unknown[0]!r}, expected some of fp32, fp16, int8, separated by commas")
    if "fp32" not in words:
        raise OptionError(
            f"targets {text!r} leave out fp32, in which stem, first block and classifier always run; add fp32"
        )
    return tuple(precision for precision in PRECISIONS if precision in words)


def engine_precision(option: Option, targets: Sequence[str]) -> Precision | None:
    """Which engine serves an option: up to 8 bits int8, 9 to 16 fp16, above fp32.

    Where that precision is not among ``targets``, the next more precise one that is.

    Returns:
        A precision of ``targets``, or ``None`` for an option that skips.
    """
    if option.skips:
        return None
    least: Precision = "int8" if option.bits <= 8 else "fp16" if option.bits <= 16 else "fp32"
    for precision in PRECISIONS[PRECISIONS.index(least) :]:
        if precision in targets:
            return precision
    raise OptionError(
        f"no engine of {', '.join(targets)} is as precise as option {option.name!r}; add fp32 to the targets"
    )


def computation_percentage(path: NDArray[np.integer], costs: Sequence[float]) -> NDArray[np.float32]:
    """Computation of each sample relative to running every gated block in full precision.

    The first block, the stem, the projections, the gates and the classifier are left out (Section 4, Metrics).

    Args:
        path: (N, blocks) integer, the option index that each gated block ran.
        costs: (options,) cost of each option, between 0 and 1.

    Returns:
        (N,) float32, in percent: 0 where every block is skipped, 100 where all run in full precision.
    """
    import numpy as np

    path = np.asarray(path)
    if path.shape[1] == 0:
        return np.full(path.shape[0], 100.0, np.float32)
    return np.asarray(100.0 * np.asarray(costs, np.float64)[path].mean(axis=1), np.float32)
