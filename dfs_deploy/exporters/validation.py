"""Validation: every engine computes what its option means, and so does the whole. Any mismatch fails the export.

What an option *means* is its rounded weights and its saturation; the rounding of activations is an engine's own.
Engines are compared on the reference's intermediate tensors, and the whole along different paths: those that the
reference's gate takes, each forced, so that a near-tie in the gate cannot fail the comparison; and, if these are few,
others that differ from them in one decision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.engines import PlacedEngine, engines_of, feature_grids
from dfs_deploy.errors import ExportMismatchError
from dfs_deploy.exporters.engines import STATE
from dfs_deploy.exporters.int8 import Grid
from dfs_deploy.exporters.reference import Reference
from dfs_deploy.models import DFSNetwork, NetworkBlock, run_option
from dfs_deploy.models.network import Decision
from dfs_deploy.options import PRECISIONS, Precision
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, session_options
from dfs_deploy.system.ort import onnxruntime as ort

POOLED_TOLERANCE = 1e-4
"""Greatest error of the mean that an engine gives with its output, relative to the greatest mean of absolute values."""

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.15}
"""Greatest error of an engine, relative to its block's output: of the greatest (floats) or root-mean-square (INT8)."""

LOGIT_TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.5}
"""Greatest root-mean-square error of the logits on forced paths, relative to that of the logits, by least precision."""

LEAST_PATHS = 10
"""Number of different paths that the whole is run along, if the network has so many."""

GATE_TOLERANCE = 1e-4
"""Greatest error of the gate's scores, relative to the greatest score."""

_GATE_SHARE = 10.0
"""The reference's own error that is allowed instead if it is more: a gate may magnify the rounding of what it sees."""

FLOAT16_MAX = float(np.finfo(np.float16).max)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class EngineDeviation:
    """Distance of one engine file from what its option means.

    Attributes:
        block: index of the block; 0 for the stem, and ``None`` for the head.
        option: name of the option; ``None`` for stem and head.
        precision: precision of the engine.
        layout: layout of the features that it takes.
        runtime: runtime that it was made for.
        max_relative: greatest absolute error over the greatest absolute output.
        rms_relative: root-mean-square error over that of the output.
        remark: further cause of the error, for messages.
    """

    block: int | None
    option: str | None
    precision: Precision
    layout: str
    runtime: str
    max_relative: float
    rms_relative: float
    remark: str = ""

    @property
    def label(self) -> str:
        """Name of the engine in messages."""
        part = "head" if self.block is None else f"block {self.block}, option {self.option}" if self.option else "stem"
        return f"{part}: {self.precision} engine from {self.layout} for {self.runtime}{self.remark}"

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
    """Result of a validation: everything compared lies within its tolerance.

    Attributes:
        engines: one entry per engine file.
        paths: number of different paths that the whole was run on.
    """

    engines: tuple[EngineDeviation, ...]
    paths: int

    def worst(self, precision: Precision) -> float | None:
        """The greatest error of the engines of a precision; ``None`` if there is none."""
        return max((engine.judged for engine in self.engines if engine.precision == precision), default=None)


def validate(bundle: Bundle, reference: Reference) -> Validation:
    """Compares an export with its reference.

    Args:
        bundle: the bundle, in its place or still a draft.
        reference: what the reference computes for some images; the more paths they take the better.

    Raises:
        ExportMismatchError: an engine or a path differs from the reference by more than its tolerance; the error
                lists all that do.
    """
    with torch.no_grad():
        engines = tuple(_compare_engines(bundle, reference))
        mismatches = [
            _Mismatch(
                engine.precision,
                f"{engine.label}: error {engine.judged:.3g} of the output, tolerance {TOLERANCES[engine.precision]:g}",
            )
            for engine in engines
            if not engine.passed
        ]
        mismatches += _compare_gate(bundle, reference)
        mismatches += _compare_static(bundle, reference)
        paths, whole = _compare_whole(bundle, reference)
        mismatches += whole
    if mismatches:
        raise ExportMismatchError(
            f"{len(mismatches)} part(s) of the export disagree with the reference; the first: {mismatches[0].text};"
            f" {_remedy(bundle, mismatches)}",
            [mismatch.text for mismatch in mismatches],
        )
    return Validation(engines, paths)


def compare_engines(bundle: Bundle, reference: Reference) -> tuple[EngineDeviation, ...]:
    """Distances of all engines from what their options mean; arguments as for ``validate``."""
    with torch.no_grad():
        return tuple(_compare_engines(bundle, reference))


class _Mismatch(NamedTuple):
    """A part that disagrees: the precision of its arithmetic, and what was seen."""

    precision: Precision
    text: str


def _taken(reference: Reference, placed: PlacedEngine) -> Tensor:
    """The input of an engine."""
    if placed.block is None:
        return reference.features[-1]
    # Ranges are those of what the gate sends here, so that is what an engine is judged on, if anything is sent.
    option = reference.network.options.names.index(placed.option) if placed.part == "block" else None
    return reference.reaching(placed.block, option)


def _expected(network: DFSNetwork, placed: PlacedEngine, features: Tensor) -> Tensor:
    """The output that an engine should give, for features that may have been rounded."""
    if placed.block is None:
        return network.head(features, round_inputs=False)
    if placed.part == "stem":
        return network.stem(features, round_inputs=False)
    option = network.options[network.options.names.index(placed.option)]
    return run_option(network.block(placed.block), features, option, round_inputs=False)


def _remedy(bundle: Bundle, mismatches: Sequence[_Mismatch]) -> str:
    """Advice about engines that disagree, the exact ones first: nothing cures those."""
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


def _compare_engines(bundle: Bundle, reference: Reference) -> Iterator[EngineDeviation]:
    checked: set[str] = set()
    for runtime in bundle.manifest.runtimes:
        grids, options = [Grid(*grid) for grid in feature_grids(bundle, runtime)], _session_options(runtime)
        for placed in engines_of(bundle, runtime):
            for layout, file in placed.engine.files.items():
                if file in checked:
                    continue
                checked.add(file)
                features = _taken(reference, placed)
                fed: NDArray[np.generic] = features.numpy()
                if layout == "uint8":
                    # The reference is given what the grid can hold, so that only the engine itself is judged.
                    grid = grids[-1 if placed.block is None else placed.block - 1]
                    levels = grid.quantize(features.numpy())
                    features = torch.from_numpy(grid.dequantize(levels))
                    fed = np.ascontiguousarray(levels.transpose(0, 2, 3, 1))
                session = open_session(bundle.model(file), file, options)
                got, *pooled = session.run(None, {session.get_inputs()[0].name: fed})
                if placed.engine.output == "uint8" and placed.block is not None:
                    got = grids[placed.block].dequantize(got.transpose(0, 3, 1, 2))
                expected = _expected(reference.network, placed, features).numpy()
                remark = ""
                if placed.engine.precision == "fp16" and np.abs(expected).max() >= FLOAT16_MAX:
                    remark = ", whose output overflows float16"
                if pooled and not _is_mean(pooled[0], got):
                    remark += ", whose pooled output is not the mean of its output"
                    got = np.full_like(got, np.nan)
                greatest, rms = _relative_errors(got, expected)
                yield EngineDeviation(
                    block=placed.block,
                    option=placed.option or None,
                    precision=placed.engine.precision,
                    layout=layout,
                    runtime=runtime,
                    max_relative=greatest,
                    rms_relative=rms,
                    remark=remark,
                )


def _session_options(runtime: str) -> ort.SessionOptions:
    """Options to judge a runtime's graphs with; those of another runtime than ONNX Runtime are run node by node.

    What they say is judged then, and not what integer kernels make of them, which saturate on a CPU without VNNI.
    """
    options = session_options(threads=1)
    if runtime != "onnxruntime":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _is_mean(pooled: NDArray[np.float32], features: NDArray[np.float32]) -> bool:
    error = np.abs(pooled - features.mean((2, 3), dtype=np.float64)).max()
    return bool(error / max(float(np.abs(features).mean((2, 3)).max()), _TINY) <= POOLED_TOLERANCE)


def _relative_errors(got: NDArray[np.floating], expected: NDArray[np.floating]) -> tuple[float, float]:
    """The greatest and the root-mean-square error, each relative to that of what was expected."""
    values, errors = expected.astype(np.float64), got.astype(np.float64) - expected
    greatest = np.abs(errors).max() / max(np.abs(values).max(), _TINY)
    return float(greatest), float(np.sqrt(np.mean(errors**2)) / max(np.sqrt(np.mean(values**2)), _TINY))


def _compare_gate(bundle: Bundle, reference: Reference) -> Iterator[_Mismatch]:
    """Steps the exported gate on the reference's pooled features, and compares its scores with exact ones."""
    network, images = reference.network, len(reference.images)
    exact = _exact_scores(reference)
    zeros = np.zeros((images, network.architecture.gate.hidden), np.float32)
    for file in {engines.gate for engines in bundle.manifest.runtimes.values() if engines.gate is not None}:
        session = open_session(bundle.model(file), file, session_options(threads=1))
        memory = [name for name in STATE if name in {value.name for value in session.get_inputs()}]
        state = dict.fromkeys(memory, zeros)
        for block, expected in exact.items():
            pooled = reference.features[block].mean((2, 3)).numpy()
            feeds = {"pooled": pooled, "block": np.array(block, np.int64), **state}
            scores, *after = session.run(["scores", *(f"{name}_out" for name in memory)], feeds)
            state = dict(zip(memory, after, strict=True))
            allowed = [option in network.options_of(block + 1) for option in network.options]
            error, _ = _relative_errors(scores[:, allowed], expected[:, allowed])
            own, _ = _relative_errors(reference.routed.scores[:, block].numpy()[:, allowed], expected[:, allowed])
            tolerance = max(GATE_TOLERANCE, _GATE_SHARE * own)
            if not error <= tolerance:
                yield _Mismatch("fp32", f"gate after block {block}: error {error:.3g}, tolerance {tolerance:.3g}")


def _exact_scores(reference: Reference) -> dict[int, NDArray[np.float64]]:
    """Scores of the reference's gate in float64, by the block that they come after."""
    network, scores = reference.network, {}
    if network.gate is None:
        return {}
    gate = copy.deepcopy(network.gate).double()
    state = gate.initial_state(reference.features[0].double())
    for block, features in enumerate(reference.features[:-1]):
        if network.decided(block + 1):
            found, state = gate(block, features.double(), state)
            scores[block] = found.numpy()
    return scores


def _compare_static(bundle: Bundle, reference: Reference) -> Iterator[_Mismatch]:
    """Compares the static baselines with the static network, INT8 only if its ranges were measured on data."""
    network = reference.network
    expected = network.static(reference.images, skipped=network.left_out).numpy()
    measured = bundle.manifest.calibration is not None and bundle.manifest.calibration.data is not None
    for runtime, engines in bundle.manifest.runtimes.items():
        for precision, file in engines.static.items():
            session = open_session(bundle.model(file), file, _session_options(runtime))
            got = session.run(None, {"images": reference.images.numpy()})[0]
            (_, error), tolerance = _relative_errors(got, expected), LOGIT_TOLERANCES[precision]
            if not error <= tolerance and (precision != "int8" or measured):
                seen = f"static {precision} for {runtime}: error {error:.3g}, tolerance {tolerance:g}"
                yield _Mismatch(precision, seen)


def _compare_whole(bundle: Bundle, reference: Reference) -> tuple[int, list[_Mismatch]]:
    """Runs images through the runtime along different paths, each forced; gives the number of paths too."""
    if "onnxruntime" not in bundle.manifest.runtimes:
        return 0, []
    network = reference.network
    rows, path = different_paths(network, reference.routed.path.numpy().astype(np.uint8))
    images = reference.images[rows]
    with Runtime(bundle, "onnxruntime", plan=False, prepared=False) as runtime:
        got = runtime(images.numpy(), path=None if network.gate is None else path, finite=False)

    def meant(block: NetworkBlock, features: Tensor, decision: Decision) -> Tensor:
        return run_option(block, features, network.options[int(decision.choice[0])], round_inputs=False)

    forced = torch.from_numpy(path.astype(np.int64))
    runs = [network.unroll(images[i : i + 1], meant, forced[i : i + 1]) for i in range(len(path))]
    expected = torch.cat([run.logits for run in runs]).numpy()
    _, error = _relative_errors(got.logits, expected)
    if not np.array_equal(got.path, path):
        row = int((got.path != path).any(1).argmax())
        seen = f"path {got.path[row].tolist()}, the reference's is {path[row].tolist()}"
        return len(path), [_Mismatch("fp32", seen)]
    used = {placed.engine.precision for placed in engines_of(bundle, "onnxruntime") if placed.rank == 0}
    least = min(used, key=PRECISIONS.index)
    seen = f"logits on {len(path)} forced paths: error {error:.3g}, tolerance {LOGIT_TOLERANCES[least]:g}"
    return len(path), [] if error <= LOGIT_TOLERANCES[least] else [_Mismatch(least, seen)]


def different_paths(network: DFSNetwork, taken: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Different paths: all that images take; and if these are fewer than ``LEAST_PATHS``, others like them.

    The others differ in one decision from a path before them: what they compute is near to what the ranges of INT8
    engines were measured on.

    Args:
        network: the reference.
        taken: (N, gated blocks) path of each image.

    Returns:
        (paths,) index of the image for each path, and (paths, gated blocks) the paths, no two equal.
    """
    paths, first = np.unique(taken, axis=0, return_index=True)
    found = {tuple(path): int(row) for path, row in zip(paths.tolist(), first, strict=True)}
    changes = [
        (index, choice)
        for index in range(1, len(network.architecture.blocks))
        if network.decided(index)
        for choice, option in enumerate(network.options)
        if option in network.options_of(index)
    ]
    order = np.random.default_rng(0).permutation(len(changes))  # not all of them in the first blocks
    queue = list(found)
    for path in queue:
        for index, choice in (changes[i] for i in order):
            changed = (*path[: index - 1], choice, *path[index:])
            if len(found) < LEAST_PATHS and changed not in found:
                found[changed] = found[path]
                queue.append(changed)
    return np.array([*found.values()], np.int64), np.array([*found], np.uint8).reshape(len(found), taken.shape[1])
