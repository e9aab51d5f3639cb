"""Options of a gated block: what it may do for one input, what that costs, and which engine runs it.

An *option* is a bitwidth: 0 bits skip the block, 32 bits run it in full precision, and a bitwidth in between runs
it with quantised weights and activations (Section 3 of "Fractional Skipping", AAAI 2020, Equation 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, overload

from dfs_deploy.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FULL_BITS = 32
"""Bitwidth of full precision, IEEE float32."""

Precision = Literal["int8", "fp16", "fp32"]

PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")
"""Engine precisions, the least precise first; also the words for ``--targets``."""

TRAINED: Final = "trained"
"""Budget of the gate as it was trained, whatever budget a bundle has by default."""

Budget = float | Literal["trained"] | None
"""Share of the computation, 0 to 1; ``trained`` for the gate as trained; ``None`` for the bundle's own: its accuracy
budget, or the gate as trained if it has none."""

# int() refuses thousands of digits with an error of its own.
_MOST_DIGITS = 9

_NAMED_BITS = {"skip": 0, "full": FULL_BITS, "keep": FULL_BITS}


@dataclass(frozen=True, order=True)
class Option:
    """One option of a gated block.

    Attributes:
        bits: bitwidth: 0 (skip), 2 to 31 (quantised) or 32 (full precision).
    """

    bits: int

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not (self.bits == 0 or 2 <= self.bits <= FULL_BITS):
            raise OptionError(
                f"option of {self.bits!r} bits, expected 0 (skip) or 2 to {FULL_BITS}; correct the list of options"
            )

    @property
    def name(self) -> str:
        """Name of the option: ``skip``, ``full``, or the bitwidth in digits."""
        return {0: "skip", FULL_BITS: "full"}.get(self.bits, str(self.bits))

    @property
    def skips(self) -> bool:
        """Whether the block is skipped."""
        return self.bits == 0

    @property
    def quantized(self) -> bool:
        """Whether weights and activations are quantised."""
        return 0 < self.bits < FULL_BITS

    @property
    def cost(self) -> float:
        """Computation relative to the full-precision block, ``(bits / 32) ** 2`` (Section 4, Metrics)."""
        return (self.bits / FULL_BITS) ** 2


class Options(Sequence[Option]):
    """Options of a network's gate, in the order of the gate's scores.

    Args:
        bits: bitwidth of each option; at least two, all different.

    Raises:
        OptionError: a bitwidth is out of bounds or repeated, or there are fewer than two.
    """

    def __init__(self, bits: Iterable[int]) -> None:
        # One more than there are bitwidths is enough to find a duplicate in an endless list.
        self._options = tuple(Option(b) for b in itertools.islice(bits, FULL_BITS + 1))
        if len(self._options) < 2:
            raise OptionError(f"{len(self._options)} option(s), expected at least 2, as in 'skip,8,16,full'")
        if len(set(self._options)) != len(self._options):
            raise OptionError(f"an option is repeated in '{self}'; give each once")

    @classmethod
    def parse(cls, given: str | Iterable[object]) -> Options:
        """Parses a list such as ``skip,8,16,full``, or ``["skip", 8]``; options are returned as they are.

        Raises:
            OptionError: a word is neither ``skip``, ``full`` nor a bitwidth.
        """
        if isinstance(given, Options):
            return given
        return cls(map(_parse_bits, _words(given)))

    @property
    def bits(self) -> tuple[int, ...]:
        """Bitwidth of each option, in order."""
        return tuple(option.bits for option in self._options)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each option, in order."""
        return tuple(option.name for option in self._options)

    @property
    def costs(self) -> tuple[float, ...]:
        """Cost of each option, between 0 and 1, in order."""
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


def option_names(given: str | Iterable[object]) -> tuple[str, ...]:
    """Names of some options, each once: of a list such as ``skip,8`` or ``["skip", 8]``, or of one such as ``full``.

    Raises:
        OptionError: a word is neither ``skip``, ``full`` nor a bitwidth, or there is none.
    """
    names = tuple(dict.fromkeys(Option(_parse_bits(word)).name for word in _words(given)))
    if not names:
        raise OptionError("no option, expected at least 1, as in 'skip,8,16,full'")
    return names


def _words(given: str | Iterable[object]) -> Iterator[str]:
    words = given.split(",") if isinstance(given, str) else itertools.islice(given, FULL_BITS + 1)
    return (str(part.name if isinstance(part, Option) else part).strip().lower() for part in words)


def _parse_bits(word: str) -> int:
    if word in _NAMED_BITS:
        return _NAMED_BITS[word]
    if word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS:
        return int(word)
    raise OptionError(f"unknown option {word!r}, expected skip, full or a bitwidth, as in 'skip,8,16,full'")


def parse_policy(names: Sequence[str], options: Options) -> tuple[int, ...]:
    """Parses a static policy: the index into ``options`` of each gated block's option, given the options' names.

    Raises:
        OptionError: a name is not among the options.
    """
    known = options.names
    for name in names:
        if name not in known:
            raise OptionError(f"policy with option {name!r}, expected one of {options} per gated block")
    return tuple(known.index(name) for name in names)


def parse_targets(given: str | Iterable[str]) -> tuple[Precision, ...]:
    """Parses a list of engine precisions such as ``fp32,fp16,int8``, or ``["fp32", "int8"]``.

    Returns:
        The precisions, the least precise first.

    Raises:
        OptionError: a precision is unknown, or fp32 is missing.
    """
    words = {word.strip().lower() for word in (given.split(",") if isinstance(given, str) else given)}
    unknown = sorted(words - set(PRECISIONS))
    if unknown:
        raise OptionError(f"unknown target {unknown[0]!r}, expected some of fp32, fp16, int8, separated by commas")
    if "fp32" not in words:
        raise OptionError(
            f"targets {','.join(sorted(words))!r} lack fp32, to which every other precision falls back; add fp32"
        )
    return tuple(precision for precision in PRECISIONS if precision in words)


def engine_precision(option: Option, targets: Sequence[str]) -> Precision | None:
    """Precision of the engine for an option: int8 up to 8 bits, fp16 up to 16, fp32 above.

    If ``targets`` lacks that precision, the next more precise one of ``targets`` is the fallback.

    Returns:
        A precision of ``targets``, or ``None`` for an option that skips.

    Raises:
        OptionError: no target is precise enough.
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


def computation_percentage(
    path: NDArray[np.integer], costs: Sequence[float], weights: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Computation of each sample, relative to running every decided block in full precision (Section 4, Metrics).

    Stem, projections, gates, the blocks that always run and the classifier do not count.

    Args:
        path: (N, blocks) integer, index of the option that each block after the first ran.
        costs: (options,) cost of each option, between 0 and 1.
        weights: (blocks,) weight of each block, at least 0, as from ``Architecture.weights``; ``None`` for equal ones.

    Returns:
        (N,) float32, in percent: 0 if every decided block is skipped, 100 if all run in full precision, and 100 if no
        block weighs anything.
    """
    import numpy as np

    path = np.asarray(path)
    weight = np.ones(path.shape[1]) if weights is None else np.asarray(weights, np.float64)
    total = weight.sum()
    if not total > 0.0:
        return np.full(path.shape[0], 100.0, np.float32)
    return np.asarray(100.0 * ((np.asarray(costs, np.float64)[path] * weight).sum(axis=1) / total), np.float32)
