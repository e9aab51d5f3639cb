"""Does every engine compute what its option means, and does the whole? Any mismatch fails the export.

What an option *means* is its rounded weights and its saturation; the rounding of activations is an engine's own.
Engines are compared on the reference's intermediate tensors, and the whole on inputs that take different paths, each
forced to the reference's, so that a comparison never hangs on a decision at a knife's edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import Engine
from dfs_deploy.errors import ExportMismatchError
from dfs_deploy.exporters.engines import Grid
from dfs_deploy.exporters.quantized import UINT8_STEPS
from dfs_deploy.models import DFSNetwork, run_option
from dfs_deploy.options import PRECISIONS, Option, Precision
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.binding import open_session, session_options
from dfs_deploy.system.ort import onnxruntime as ort

POOLED_TOLERANCE = 1e-4
"""Greatest error of the mean that an engine gives with its output, relative to the greatest mean of absolute values."""

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.15}
"""Greatest error of an engine, relative to its block's output: of the greatest (floats) or root-mean-square (INT8)."""

LOGIT_TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.5}
"""Greatest root-mean-square error of the logits on forced paths, relative to that of the logits, by least precision."""

GATE_TOLERANCE = 1e-4
"""Greatest error of the gate's scores, relative to the greatest score."""

FLOAT16_MAX = float(np.finfo(np.float16).max)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class EngineDeviation:
    """How far an engine is from what its option means.

    Attributes:
        label: block, option, precision, layout of the input and runtime.
        precision: precision of the engine.
        max_relative: greatest absolute error over the greatest absolute output.
        rms_relative: root-mean-square error over that of the output.
        block: index of the block, or ``None`` for the head.
        option: its name, or ``None`` for stem and head.
        layout: layout of the features that it takes.
        runtime: runtime that it was made for.
    """

    label: str
    precision: Precision
    max_relative: float
    rms_relative: float
    block: int | None = None
    option: str | None = None
    layout: str = "float32"
    runtime: str = "onnxruntime"

    @property
    def judged(self) -> float:
        """The figure that its tolerance is about."""
        return self.rms_relative if self.precision == "int8" else self.max_relative

    @property
    def passed(self) -> bool:
        """Whether it is within its tolerance; NaN is not."""
        return self.judged <= TOLERANCES[self.precision]


@dataclass(frozen=True)
class Validation:
    """What was compared, and how far apart it was.

    Attributes:
        engines: one entry an engine file.
        paths: how many different paths the whole was run on.
        logit_rms_relative: root-mean-square error of the logits on those paths, over that of the logits.
    """

    engines: tuple[EngineDeviation, ...]
    paths: int
    logit_rms_relative: float


def validate(bundle: Bundle, network: DFSNetwork, images: NDArray[np.float32]) -> Validation:
    """Compares an export with its reference.

    Args:
        bundle: what was written.
        network: the reference, in evaluation mode.
        images: (N, C, H, W) float32, normalised; the more paths they take the better.

    Returns:
        The deviations, all within their tolerances.

    Raises:
        ExportMismatchError: at least one is not; it lists all that are not.
    """
    engines = compare_engines(bundle, network, images)
    with torch.no_grad():
        mismatches = [
            _Mismatch(
                engine.precision,
                f"{engine.label}: error {engine.judged:.3g} of the output, tolerance {TOLERANCES[engine.precision]:g}",
            )
            for engine in engines
            if not engine.passed
        ]
        mismatches += _compare_gate(bundle, network, torch.from_numpy(images))
        mismatches += _compare_static(bundle, network, images)
        paths, error, whole = _compare_whole(bundle, network, images)
        mismatches += whole
    if mismatches:
        raise ExportMismatchError(
            f"{len(mismatches)} part(s) of the export disagree with the reference; the first: {mismatches[0].text};"
            f" {_remedy(bundle, mismatches)}",
            [mismatch.text for mismatch in mismatches],
        )
    return Validation(engines, paths, error)


@dataclass(frozen=True)
class _Mismatch:
    """A part that disagrees: the precision of its arithmetic, and what was seen."""

    precision: Precision
    text: str


def _remedy(bundle: Bundle, mismatches: Sequence[_Mismatch]) -> str:
    """What to do about engines that disagree, the exact ones first: nothing cures those."""
    wrong = {mismatch.precision for mismatch in mismatches}
    left = ",".join(target for target in bundle.manifest.targets if target not in wrong)
    if "fp32" in wrong:
        return "FP32 engines compute what the reference does, so report this, with the checkpoint if you can"
    if "int8" not in wrong:
        return f"leave FP16 out, as in --targets {left}"
    calibration = bundle.manifest.calibration
    if calibration is None or calibration.data is None:
        return (
            "its ranges were not measured on data: give --calibration-data, with images as the network was trained on,"
            f" or leave INT8 out, as in --targets {left}"
        )
    return (
        f"{calibration.method} on {calibration.samples} images of {calibration.data} gives INT8 ranges that do not fit:"
        " try another --calibration-method (percentile, mse), more --calibration-samples, or leave INT8 out, as in"
        f" --targets {left}"
    )


def compare_engines(bundle: Bundle, network: DFSNetwork, images: NDArray[np.float32]) -> tuple[EngineDeviation, ...]:
    """How far each engine is from what its option means, on the reference's own intermediate tensors.

    Args:
        bundle: what was exported.
        network: the reference, in evaluation mode.
        images: (N, C, H, W) float32, normalised.
    """
    with torch.no_grad():
        return tuple(_compare_engines(bundle, network, torch.from_numpy(images)))


@dataclass(frozen=True, eq=False)
class _Case:
    """An engine, the features to feed it, and what should come out for features that may have been rounded."""

    engine: Engine
    label: str
    features: Tensor
    block: int | None
    option: Option | None


def _cases(bundle: Bundle, network: DFSNetwork, runtime: str, images: Tensor) -> Iterator[_Case]:
    engines = bundle.manifest.runtimes[runtime]
    inputs: dict[int, Tensor] = {}

    def keep(block: int, option: int, rows: Tensor, features: Tensor) -> None:
        inputs.setdefault(block, features.new_empty(len(images), *features.shape[1:]))[rows] = features

    routed = network.route(images, observer=keep)
    yield _Case(engines.stem, "stem", images, 0, None)
    features = network.blocks[0](network.backbone.stem(images))
    for block in engines.blocks:
        features = inputs[block.index]
        if block.skip is not None:
            yield _Case(block.skip, f"block {block.index}, option skip", features, block.index, Option(0))
        for position, option in enumerate(network.options):
            # Ranges are those of what the gate sends here, so that is what an engine is judged on, if anything is sent.
            rows = torch.nonzero(routed.path[:, block.index - 1] == position).flatten()
            sent = features[rows] if len(rows) else features
            for engine in block.options.get(option.name, ()):
                label = f"block {block.index}, option {option.name}"
                yield _Case(engine, label, sent, block.index, option)
        features = network.run_block(block.index, features, routed.path[:, block.index - 1])
    yield _Case(engines.head, "head", features, None, None)


def _expected(network: DFSNetwork, case: _Case, features: Tensor) -> Tensor:
    if case.block is None:
        return network.backbone.classify(features)
    block = network.blocks[case.block]
    if case.option is None:
        result: Tensor = block(network.backbone.stem(features))
    else:
        result = run_option(block, features, case.option, round_inputs=False)
    return result


def _compare_engines(bundle: Bundle, network: DFSNetwork, images: Tensor) -> Iterator[EngineDeviation]:
    checked: set[str] = set()
    for runtime, engines in bundle.manifest.runtimes.items():
        grids, options = [Grid(scale) for scale in engines.feature_scales], _session_options(runtime)
        for case in _cases(bundle, network, runtime, images):
            for layout, file in case.engine.files.items():
                if file in checked:
                    continue
                checked.add(file)
                features = case.features
                fed = features.numpy()
                if layout == "uint8":
                    # The yardstick is given what the grid can hold, so that only the engine itself is judged.
                    grid = grids[(case.block if case.block is not None else len(grids)) - 1]
                    with np.errstate(over="ignore"):  # a group that was always zero has next to no scale
                        levels = np.clip(np.rint(fed / grid.scale), 0, UINT8_STEPS).astype(np.uint8)
                    features = torch.from_numpy(levels.astype(np.float32) * np.float32(grid.scale))
                    fed = np.ascontiguousarray(levels.transpose(0, 2, 3, 1))
                session = open_session(bundle.read(file), file, options)
                got, *pooled = session.run(None, {session.get_inputs()[0].name: fed})
                if case.engine.output == "uint8":
                    assert case.block is not None  # noqa: S101 (only blocks end in uint8)
                    got = got.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(grids[case.block].scale)
                label = f"{case.label}: {case.engine.precision} engine from {layout} for {runtime}"
                expected = _expected(network, case, features).numpy()
                yield replace(
                    _deviation(label, case.engine.precision, got, expected, *pooled),
                    block=case.block,
                    option=None if case.option is None else case.option.name,
                    layout=layout,
                    runtime=runtime,
                )


def _session_options(runtime: str) -> ort.SessionOptions:
    """Options to judge a runtime's graphs with; those of another runtime than ONNX Runtime are run node by node.

    What they say is judged then, and not what integer kernels make of them, which saturate on a CPU without VNNI.
    """
    options = session_options(threads=1)
    if runtime != "onnxruntime":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _deviation(
    label: str,
    precision: Precision,
    got: NDArray[np.float32],
    expected: NDArray[np.float32],
    pooled: NDArray[np.float32] | None = None,
) -> EngineDeviation:
    if precision == "fp16" and np.abs(expected).max() >= FLOAT16_MAX:
        label = f"{label}, whose output overflows float16"
    if pooled is not None:
        mean = got.mean((2, 3), dtype=np.float64)
        error = float(np.abs(pooled - mean).max()) / max(float(np.abs(got).mean((2, 3)).max()), _TINY)
        if not error <= POOLED_TOLERANCE:
            label, got = f"{label}, whose pooled output is not the mean of its output", got + np.float32(np.nan)
    difference = got.astype(np.float64) - expected
    return EngineDeviation(
        label,
        precision,
        float(np.abs(difference).max()) / max(float(np.abs(expected).max()), _TINY),
        _rms(difference) / max(_rms(expected), _TINY),
    )


def _rms(x: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _compare_gate(bundle: Bundle, network: DFSNetwork, images: Tensor) -> list[_Mismatch]:
    """Steps the exported gate on the reference's pooled features, and compares its scores."""
    if network.gate is None:
        return []
    features = network.blocks[0](network.backbone.stem(images))
    reference = network.route(images)
    pooled: dict[int, NDArray[np.float32]] = {0: features.mean((2, 3)).numpy()}
    for index in range(1, len(network.blocks)):
        features = network.run_block(index, features, reference.path[:, index - 1])
        pooled[index] = features.mean((2, 3)).numpy()
    mismatches = []
    for file in {engines.gate for engines in bundle.manifest.runtimes.values() if engines.gate is not None}:
        session = open_session(bundle.read(file), file, session_options(threads=1))
        hidden = cell = np.zeros((len(images), network.architecture.gate.hidden), np.float32)
        for block in range(len(network.blocks) - 1):
            feeds = {"pooled": pooled[block], "block": np.array(block, np.int64), "hidden": hidden, "cell": cell}
            scores, hidden, cell = session.run(["scores", "hidden_out", "cell_out"], feeds)
            expected = reference.scores[:, block].numpy()
            error = float(np.abs(scores - expected).max() / max(np.abs(expected).max(), _TINY))
            if not error <= GATE_TOLERANCE:
                seen = f"gate after block {block}: error {error:.3g}, tolerance {GATE_TOLERANCE:g}"
                mismatches.append(_Mismatch("fp32", seen))
    return mismatches


def _compare_static(bundle: Bundle, network: DFSNetwork, images: NDArray[np.float32]) -> list[_Mismatch]:
    """Compares the static baselines with the backbone, INT8 only where its ranges were measured on data."""
    expected = network.backbone(torch.from_numpy(images)).numpy()
    measured = bundle.manifest.calibration is not None and bundle.manifest.calibration.data is not None
    mismatches = []
    for runtime, engines in bundle.manifest.runtimes.items():
        for precision, file in engines.static.items():
            session = open_session(bundle.read(file), file, _session_options(runtime))
            error = _rms(session.run(None, {"images": images})[0] - expected) / max(_rms(expected), _TINY)
            tolerance = LOGIT_TOLERANCES[precision]
            if not error <= tolerance and (precision != "int8" or measured):
                seen = f"static {precision} for {runtime}: error {error:.3g}, tolerance {tolerance:g}"
                mismatches.append(_Mismatch(precision, seen))
    return mismatches


def _along(network: DFSNetwork, image: NDArray[np.float32], path: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of one image along a path, by what its options mean."""
    first, *gated = network.blocks
    features: Tensor = first(network.backbone.stem(torch.from_numpy(image)))
    for block, choice in zip(gated, path, strict=True):
        features = run_option(block, features, network.options[int(choice)], round_inputs=False)
    return network.backbone.classify(features).numpy()


def _compare_whole(
    bundle: Bundle, network: DFSNetwork, images: NDArray[np.float32]
) -> tuple[int, float, list[_Mismatch]]:
    """Runs inputs of different paths through the runtime, forced to the reference's path."""
    if "onnxruntime" not in bundle.manifest.runtimes:
        return 0, 0.0, []
    path = network.route(torch.from_numpy(images)).path.numpy().astype(np.uint8)
    _, first = np.unique(path, axis=0, return_index=True)
    with Runtime(bundle, "onnxruntime", plan=False, prepared=False) as runtime:
        got = runtime(images[first], path=None if network.gate is None else path[first], finite=False)
    expected = np.concatenate([_along(network, images[i : i + 1], path[i]) for i in first])
    error = _rms(got.logits - expected) / max(_rms(expected), _TINY)
    if not np.array_equal(got.path, path[first]):
        seen = f"path {got.path[0].tolist()}, the reference's is {path[first[0]].tolist()}"
        return len(first), error, [_Mismatch("fp32", seen)]
    used = {
        engine[0].precision
        for block in bundle.manifest.runtimes["onnxruntime"].blocks
        for engine in block.options.values()
    }
    least = min({*used, PRECISIONS[-1]}, key=PRECISIONS.index)
    tolerance = LOGIT_TOLERANCES[least]
    if error <= tolerance:
        return len(first), error, []
    seen = f"logits on {len(first)} forced paths: error {error:.3g}, tolerance {tolerance:g}"
    return len(first), error, [_Mismatch(least, seen)]
