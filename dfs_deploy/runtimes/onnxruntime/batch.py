"""Dispatch for a batch: at each block the samples are regrouped by decision, so skipped work is really skipped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.manifest import Form
from dfs_deploy.runtimes.gate import Gate
from dfs_deploy.runtimes.onnxruntime.binding import run_once
from dfs_deploy.runtimes.onnxruntime.sessions import LoadedEngine, LoadedEngines


class BatchDispatch:
    """Runs any number of images at a time.

    Args:
        engines: shared with clones.
        gate: this dispatch's own.
    """

    def __init__(self, engines: LoadedEngines, gate: Gate) -> None:
        self._engines = engines
        self._gate = gate

    def run(
        self, images: NDArray[np.float32], forced: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Runs a batch, (N, C, H, W) float32; see :meth:`dfs_deploy.runtimes.base.Backend.infer`."""
        engines, samples = self._engines, len(images)
        self._gate.reset(samples)
        path = np.empty((samples, len(engines.blocks)), np.uint8)
        features = _Features(_run(engines.stem, "float32", images))
        for index, block in enumerate(engines.blocks):
            scale = engines.feature_scales[index]
            decision = self._gate.step(index, features.floats, features.integers, features.in_uint8, scale)
            path[:, index] = decision if forced is None else forced[:, index]
            features = _run_block(block.options, features, path[:, index])
        return self._classify(features), path

    def _classify(self, features: _Features) -> NDArray[np.float32]:
        logits: NDArray[np.float32] | None = None
        for form, rows in features.by_form(np.arange(len(features.in_uint8))):
            part = _run(self._engines.head, form, features.of(form)[rows])
            if logits is None:
                logits = np.empty((len(features.in_uint8), part.shape[1]), np.float32)
            logits[rows] = part
        assert logits is not None  # noqa: S101 (a batch is never empty)
        return logits


class _Features:
    """The feature maps of a batch, each sample's in one of two forms.

    Attributes:
        floats: (N, C, H, W) float32; valid where ``in_uint8`` is false.
        integers: (N, H, W, C) uint8; valid where it is true.
        in_uint8: (N,) bool.
    """

    def __init__(self, floats: NDArray[np.float32]) -> None:
        self.floats = floats
        n, c, h, w = floats.shape
        self.integers: NDArray[np.uint8] = np.empty((n, h, w, c), np.uint8)
        self.in_uint8 = np.zeros(len(floats), np.bool_)

    def of(self, form: Form) -> NDArray[Any]:
        return self.integers if form == "uint8" else self.floats

    def by_form(self, rows: NDArray[np.intp]) -> list[tuple[Form, NDArray[np.intp]]]:
        """Splits some samples by the form that they are in; leaves out a form that none is in."""
        in_uint8 = self.in_uint8[rows]
        groups: list[tuple[Form, NDArray[np.intp]]] = [("float32", rows[~in_uint8]), ("uint8", rows[in_uint8])]
        return [(form, group) for form, group in groups if len(group)]

    def put(self, form: Form, rows: NDArray[np.intp], values: NDArray[Any]) -> None:
        self.of(form)[rows] = values
        self.in_uint8[rows] = form == "uint8"


def _run_block(options: tuple[LoadedEngine | None, ...], features: _Features, choice: NDArray[np.uint8]) -> _Features:
    """Runs each sample's option; skipped samples whose shape stays are not touched."""
    results = [
        (engine.output, rows, _run(engine, form, features.of(form)[rows]))
        for option, engine in enumerate(options)
        if engine is not None
        for form, rows in features.by_form(np.flatnonzero(choice == option))
    ]
    if results:
        form, _, values = results[0]
        if values.shape[1:] != features.of(form).shape[1:]:
            # The shape changes, so every sample ran something: a skip runs its projection.
            shape = values.shape[1:] if form == "float32" else (values.shape[3], *values.shape[1:3])
            features = _Features(np.empty((len(choice), *shape), np.float32))
    for form, rows, values in results:
        features.put(form, rows, values)
    return features


def _run(engine: LoadedEngine, form: Form, features: NDArray[Any]) -> NDArray[Any]:
    return run_once(engine.sessions[form], engine.label, features)
