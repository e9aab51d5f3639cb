"""One image's result as ``dfs-deploy run`` shows it: its class, and its path as one coloured cell per gated block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from dfs_deploy.options import Option

if TYPE_CHECKING:
    from dfs_deploy.runtimes import Runtime

# Greatest bitwidth of each shade, and its style, in which text stays readable.
_SHADES = ((0, "white on grey30"), (8, "black on green3"), (16, "black on gold1"), (32, "white on red3"))


@dataclass(frozen=True)
class Classified:
    """One image's result.

    Attributes:
        index: index of the class with the greatest logit.
        name: name of that class; ``None`` if the bundle has no class names.
        probability: softmax probability of that class.
        path: option that each gated block ran.
        computation_percentage: computation of the path, in percent of every decided block in full precision.
    """

    index: int
    name: str | None
    probability: float
    path: tuple[Option, ...]
    computation_percentage: float

    @property
    def label(self) -> str:
        """Name of the class, or its index."""
        return str(self.index) if self.name is None else self.name

    def as_json(self) -> dict[str, Any]:
        """The keys of ``run --json``."""
        return {
            "class": self.index,
            "class_name": self.label,
            "probability": self.probability,
            "path": [option.name for option in self.path],
            "computation_percentage": self.computation_percentage,
        }


def classify(runtime: Runtime, image: NDArray[np.uint8]) -> Classified:
    """Classifies one image, (H, W, 3) uint8 of the network's size."""
    result, names = runtime(image[None]), runtime.input.class_names
    index = int(result.classes[0])
    odds = np.exp(result.logits[0] - result.logits[0].max())
    return Classified(
        index=index,
        name=names[index] if names else None,
        probability=float(odds[index] / odds.sum()),
        path=tuple(runtime.options[int(option)] for option in result.path[0]),
        computation_percentage=float(result.computation_percentage[0]),
    )


def cells(path: Sequence[Option]) -> Text:
    """A path, one cell per gated block; a narrow table wraps it between cells."""
    return Text(" ", justify="left").join(_cell(option) for option in path)


def legend(options: Sequence[Option]) -> Text:
    """Explanation of the cells of some options."""
    entries = [Text.assemble(_cell(option), f" = {_meaning(option)}") for option in options]
    return Text.assemble("path: one cell per block, ", Text(", ").join(entries))


def _meaning(option: Option) -> str:
    return "skipped" if option.skips else f"{option.bits} bits" if option.quantized else "full precision"


def _cell(option: Option) -> Text:
    sign = "·" if option.skips else str(option.bits) if option.quantized else "F"
    return Text(f"{sign:<2}", style=next(style for bits, style in _SHADES if option.bits <= bits))
