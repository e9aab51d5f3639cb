"""What a bundle's graphs for TensorRT give when nothing but ONNX Runtime runs them, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes.budgets import score_offset
from dfs_deploy.runtimes.gate import NumpyGate, read_gate_weights
from tests.bundles import run_model


@dataclass(frozen=True)
class Direct:
    """What came of images.

    Attributes:
        logits: (N, classes).
        path: (N, gated blocks) option indices.
        features: what reached each gated block, (N, C, H, W) float32.
    """

    logits: NDArray[np.float32]
    path: NDArray[np.int64]
    features: tuple[NDArray[np.float32], ...]


def direct(bundle: Path, images: NDArray[np.uint8], path: NDArray[np.integer[Any]] | None = None) -> Direct:
    """Runs images through a bundle's engines for TensorRT, along given paths or, without, where the gate sends them."""
    opened = Bundle(bundle)
    engines = opened.manifest.runtimes["tensorrt"]
    features, pooled = run_model(opened.model(engines.stem.files["float32"]), images=opened.input.prepare(images))
    weights = read_gate_weights(opened, "tensorrt")
    gate = NumpyGate(weights) if path is None and weights is not None else None
    decided = opened.architecture.decided(opened.options)
    if gate is not None:
        gate.set_score_offset(score_offset(0.0, opened.architecture, opened.options))
        gate.reset(len(images))
    taken, reached = [], []
    for place, block in enumerate(engines.blocks):
        if gate is not None and block.index in decided:
            choice = gate.step_pooled(place, pooled)
        elif gate is not None:
            (only,) = opened.architecture.blocks[block.index].choices(opened.options)
            choice = np.full(len(images), opened.options.names.index(only.name))
        else:
            assert path is not None
            choice = path[:, place].astype(np.int64)
        taken.append(choice)
        reached.append(features)
        rows = [np.flatnonzero(choice == index) for index in np.unique(choice)]
        parts = []
        for group in rows:
            option = opened.options[int(choice[group[0]])]
            engine = block.skip if option.skips else block.options[option.name][0]
            if engine is None:
                parts.append([features[group], pooled[group]])
            else:
                parts.append(run_model(opened.model(engine.files["float32"]), features=features[group]))
        order = np.concatenate(rows).argsort()
        features, pooled = (np.concatenate(values)[order] for values in zip(*parts, strict=True))
    (logits,) = run_model(opened.model(engines.head.files["float32"]), features=features)
    return Direct(logits, np.stack(taken, 1), tuple(reached))
