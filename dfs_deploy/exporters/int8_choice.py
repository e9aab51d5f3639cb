"""Choice of the layers that a part in INT8 keeps in float, by measured error.

Most parts lose little: a weight has one scale per output channel, and a clip or relu bounds what is rounded. Where they
lose much, a layer costs most of it, or a value between two layers whose channels differ a hundredfold. Then that layer,
or the layers on both sides of that value, are computed in float, if that brings back a good part of what was lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.exporters.engines import FEATURES, float_engine
from dfs_deploy.exporters.int8 import Grid, Int8Part, ValueRanges
from dfs_deploy.exporters.int8_graphs import onnxruntime_engine, tensorrt_engine
from dfs_deploy.exporters.split import Part
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from dfs_deploy.system.ort import onnxruntime as ort

GOOD_ERROR = 0.1
"""Root-mean-square error over that of the output up to which nothing is kept in float."""

LEAST_GAIN = 0.3
"""Share of the error that layers kept in float must take away: they cost conversions and the speed of INT8."""

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Chosen:
    """Form of a part in INT8, and the measurements that led to it.

    Attributes:
        part: name of the part.
        kept: names of the layers that are kept in float though the option quantises them.
        error: error of the form that was chosen: root-mean-square, over that of the output in float.
        tried: error of every form that was measured, by the layers that it keeps in float.
    """

    part: str
    kept: tuple[str, ...]
    error: float
    tried: Mapping[tuple[str, ...], float]

    def __str__(self) -> str:
        if not self.kept:
            return f"{self.part}: all in INT8, error {self.error:.2%}"
        return (
            f"{self.part}: {', '.join(self.kept)} in float, error {self.error:.2%} instead of {self.tried[()]:.2%} with"
            " all in INT8"
        )


def choose(
    part: Part,
    ranges: ValueRanges,
    takes: Grid | None,
    gives: Grid | None,
    bits: int,
    features: NDArray[np.float32],
) -> tuple[Int8Part, Chosen]:
    """Describes a part for ONNX Runtime, with layers in float that cost too much accuracy in INT8.

    Args:
        part: folded layers that it computes.
        ranges: calibrated interval of every value in it.
        takes: grid on which the features arrive; ``None`` for float32.
        gives: grid on which the output leaves; ``None`` for float32.
        bits: bits of the weights, 8 or 7.
        features: (N, C, H, W), what reaches the part in calibration; a few dozen samples.
    """
    describe = functools.partial(Int8Part.for_onnxruntime, ranges=ranges, takes=takes, gives=gives, bits=bits)
    return _choose(part, features, describe, onnxruntime_engine, session_options(threads=1))


def choose_for_tensorrt(part: Part, ranges: ValueRanges, features: NDArray[np.float32]) -> tuple[Int8Part, Chosen]:
    """The same for TensorRT, whose graphs ONNX Runtime runs node by node here: as they are written."""
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _choose(part, features, functools.partial(Int8Part.for_tensorrt, ranges=ranges), tensorrt_engine, options)


def _choose(
    part: Part,
    features: NDArray[np.float32],
    describe: Callable[[Part], Int8Part],
    engine: Callable[[str, Int8Part], bytes],
    options: ort.SessionOptions,
) -> tuple[Int8Part, Chosen]:
    def measured(form: Int8Part) -> float:
        fed: NDArray[Any] = meant
        if form.takes is not None:
            fed = np.ascontiguousarray(form.takes.quantize(features).transpose(0, 2, 3, 1))
        got = _run(engine(part.name, form), part.name, fed, options)
        if form.gives is not None:
            got = form.gives.dequantize(got.transpose(0, 3, 1, 2).astype(np.uint8))
        return _error(got, expected)

    everything = describe(part)
    # The reference is given what the grid can hold, so that only the part itself is judged.
    meant = features if everything.takes is None else everything.takes.dequantize(everything.takes.quantize(features))
    expected = _run(float_engine(part.name, part), part.name, meant, session_options(threads=1))
    forms: dict[tuple[str, ...], Int8Part] = {(): everything}
    tried: dict[tuple[str, ...], float] = {(): measured(everything)}
    kept: tuple[str, ...] = ()
    while tried[kept] > GOOD_ERROR:
        more = [(*kept, *names) for names in _candidates(forms[kept])]
        for names in more:
            forms[names] = describe(_keeping(part, names))
            tried[names] = measured(forms[names])
        best = min(more, key=lambda names: tried[names], default=kept)
        if tried[best] > (1.0 - LEAST_GAIN) * tried[kept]:
            break
        kept = best
    return forms[kept], Chosen(part.name, kept, tried[kept], tried)


def _candidates(form: Int8Part) -> Iterator[tuple[str, ...]]:
    """Names of layers in INT8 that may be kept in float next: each alone, and each with those that read its result."""
    integer = [step for step in form.layers if step.weight is not None]
    for step in integer:
        yield (step.layer.name,)
        if readers := [other.layer.name for other in integer if step.name in other.layer.inputs]:
            yield (step.layer.name, *readers)


def _keeping(part: Part, names: tuple[str, ...]) -> Part:
    """A part whose layers of these names are computed in float."""
    return replace(
        part, layers=tuple(replace(layer, exact=layer.exact or layer.name in names) for layer in part.layers)
    )


def _run(engine: bytes, name: str, features: NDArray[Any], options: ort.SessionOptions) -> NDArray[Any]:
    """The output of an engine, its first; sixteen samples at a time, so that memory is bounded."""
    session = open_session(engine, name, options)
    return np.concatenate(
        [
            session.run(["output"], {FEATURES: features[start : start + _BATCH]})[0]
            for start in range(0, len(features), _BATCH)
        ]
    )


_BATCH = 16


def _error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = np.sqrt(np.mean(np.square(got.astype(np.float64) - expected)))
    return float(difference / max(float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))), _TINY))
