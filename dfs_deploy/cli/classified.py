"""One image's result as ``dfs-deploy run`` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.options import Option
from dfs_deploy.runtimes import Runtime


@dataclass(frozen=True)
class Classified:
    """What a network made of an image.

    Attributes:
        index: of the class with the greatest logit.
        name: of that class; ``None`` where the bundle knows no names.
        probability: that softmax gives the class.
        path: what each gated block ran.
        computation_percentage: of every gated block run in full precision.
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
        """Its keys in ``run --json``."""
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
