"""Every engine of a bundle, static baselines included, written for each runtime in the form that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dfs_deploy.bundle.manifest import BlockEngines, Engine, Layout, RuntimeEngines
from dfs_deploy.calibration import ALWAYS, STATIC, Range, Ranges, TensorKey
from dfs_deploy.exporters.engines import (
    BATCH,
    FEATURES,
    IMAGES,
    ONNXRUNTIME,
    TENSORRT,
    Dialect,
    cast,
    float_engine,
    gate_engine,
)
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import Grid, Int8Part
from dfs_deploy.exporters.int8_forms import Int8Forms
from dfs_deploy.exporters.int8_graphs import (
    dequantize,
    onnxruntime_engine,
    onnxruntime_part,
    tensorrt_engine,
    tensorrt_part,
)
from dfs_deploy.exporters.layers import Float, float_part
from dfs_deploy.exporters.split import Part, split_block, split_gate, split_head, split_skip, split_stem
from dfs_deploy.models import DFSNetwork
from dfs_deploy.models.graph import INPUT, OUTPUT
from dfs_deploy.options import FULL_BITS, Option, Precision, engine_precision
from dfs_deploy.progress import Progress, silent

_DIALECTS = {"onnxruntime": ONNXRUNTIME, "tensorrt": TENSORRT}
_FOLDERS = {"onnxruntime": "common", "tensorrt": "tensorrt"}
"""Folders of the float engines; those in ``common`` are standard ONNX for any runtime that reads its opset."""

_DTYPES: dict[str, Float] = {"fp32": np.float32, "fp16": np.float16}
_GATE = "common/gate.onnx"

Inputs = Mapping[Layout, Grid | None]
"""Layouts in which features may reach an engine, with the grid of each."""

_IMAGES: Inputs = {"float32": None}


@dataclass
class EngineWriter:
    """Makes the files of a bundle.

    Args:
        network: the reference, in evaluation mode.
        forms: forms in INT8 of its parts.
        targets: precisions to make.

    Attributes:
        files: content of the files made so far, by path in the bundle.
    """

    network: DFSNetwork
    forms: Int8Forms
    targets: Sequence[Precision]
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, runtime: str, progress: Progress = silent) -> RuntimeEngines:
        """Makes the engines for one runtime.

        ONNX Runtime's INT8 engines end in uint8; TensorRT's features are float32 at every boundary, and come with their
        mean over the map. The gate is the same for all.
        """
        progress(f"writing engines for {runtime}", 0.0)
        network, writing = self.network, _RuntimeWriter(self, runtime)
        stem = writing.stem()
        blocks = []
        for index in range(1, len(network.architecture.blocks)):
            blocks.append(writing.block(index))
            progress(f"writing engines for {runtime}", index / len(network.architecture.blocks))
        gate = split_gate(network)
        if gate is not None:
            self.files[_GATE] = gate_engine(gate)
        return RuntimeEngines(
            stem=stem,
            blocks=blocks,
            head=writing.head(),
            gate=None if gate is None else _GATE,
            feature_scales=[grid.scale for grid in writing.grids],
            feature_zero_points=[grid.zero_point for grid in writing.grids],
            static=self._static_engines(runtime),
        )

    def _static_engines(self, runtime: str) -> dict[Precision, str]:
        """The static network in each target precision, as a user would deploy it without a gate."""
        files, parts = {}, self._static_parts()
        for precision in self.targets:
            dialect = _DIALECTS[runtime]
            chosen = self._static_int8(runtime, parts) if precision == "int8" else list(parts.values())
            if chosen is not None:
                dtype = _DTYPES.get(precision, np.float32)
                engine = static_engine(f"static_{precision}", chosen, dtype=dtype, dialect=dialect)
                files[precision] = f"{runtime}/static-{precision}.onnx"
                self.files[files[precision]] = engine
        return files

    def _static_parts(self) -> dict[int, Part]:
        """Stem, blocks and head in full precision by place, but of a block left out only what its skip runs, if any."""
        network, head = self.network, len(self.network.architecture.blocks)
        parts: dict[int, Part | None] = {0: split_stem(network, FULL_BITS)}
        for index in range(1, head):
            left_out = index in network.left_out
            whole = Option(FULL_BITS)
            parts[index] = split_skip(network, index, FULL_BITS) if left_out else split_block(network, index, whole)
        parts[head] = split_head(network, FULL_BITS)
        return {place: part for place, part in parts.items() if part is not None}

    def _static_int8(self, runtime: str, parts: Mapping[int, Part]) -> list[Part | Int8Part] | None:
        """Stem, blocks and head in INT8 by the static network's own ranges, which were measured on data.

        Without data, the gated blocks by the ranges of an option of up to 8 bits, or nothing if none covers them all.
        """
        last = max(parts)
        options = dict.fromkeys(parts, STATIC)
        if TensorKey(0, STATIC, INPUT) not in self.forms.ranges:
            running = [place for place in parts if 0 < place < last and place not in self.network.left_out]
            option = self._option_everywhere(running)
            if option is None:
                return None
            options |= dict.fromkeys(running, option)
        chosen: list[Part | Int8Part] = []
        grid: Grid | None = None
        for place, part in parts.items():
            ranges = self.forms.ranges_of(place, options[place])
            if not ranges:
                chosen.append(part)
                grid = None
                continue
            gives = None if place == last or runtime == "tensorrt" else Grid.uint8(ranges[OUTPUT])
            chosen.append(self.forms.of(runtime, part, place, options[place], grid, gives))
            grid = gives
        return chosen

    def _option_everywhere(self, blocks: Sequence[int]) -> int | None:
        """The most precise option that has ranges in all of some blocks, by index; ``None`` if no option has."""
        covering = {key.option for key in self.forms.ranges if key.option >= 0}
        complete = [k for k in covering if all(TensorKey(block, k, OUTPUT) in self.forms.ranges for block in blocks)]
        return max(complete, key=self.network.options.bits.__getitem__) if complete else None


class _RuntimeWriter:
    """Makes the engines for one runtime.

    Args:
        writer: writer of all runtimes, which receives the files.
        runtime: name of the runtime.

    Attributes:
        grids: grid of each block's features when they are uint8, the stem's first; one per group, whatever the option,
            so that a skip can pass them on.
    """

    def __init__(self, writer: EngineWriter, runtime: str) -> None:
        self._writer = writer
        self._network = writer.network
        self._runtime = runtime
        self._dialect = _DIALECTS[runtime]
        self._uint8 = runtime == "onnxruntime" and any(key.option != STATIC for key in writer.forms.ranges)
        self._both = gives_beyond_grid(writer.network)
        self.grids = feature_grids(writer.network, writer.forms.ranges)

    def stem(self) -> Engine:
        """The engine from images to the features of the first gated block."""
        return self._always("stem", split_stem(self._network), 0, IMAGES)

    def head(self) -> Engine:
        """The engine from the last features to logits."""
        return self._always("head", split_head(self._network), len(self.grids))

    def block(self, index: int) -> BlockEngines:
        """The engines of a gated block: one per option, and that of a skip if a skip computes anything."""
        skip, options = None, {}
        for option in self._network.options_of(index):
            if not option.skips:
                options[option.name] = self._option(index, option)
            elif (part := split_skip(self._network, index)) is not None:
                skip = self._always(f"block-{index:02d}-skip", part, index)
        return BlockEngines(index=index, skip=skip, options=options)

    def _option(self, index: int, option: Option) -> list[Engine]:
        """The engine of an option's precision; for ONNX Runtime also one in FP32, for CPUs where that is faster."""
        part, name = split_block(self._network, index, option), f"block-{index:02d}-{option.name}"
        precision = engine_precision(option, self._writer.targets)
        precisions = [precision, "fp32"] if self._runtime == "onnxruntime" else [precision]
        graph, position = f"block_{index}_option_{option.name}", self._network.options.bits.index(option.bits)
        return [
            self._engine(f"{name}-{made}", f"{graph}_{made}", part, made, index, position)
            for made in dict.fromkeys(precisions)
            if made is not None
        ]

    def _always(self, name: str, part: Part, place: int, source: str = FEATURES) -> Engine:
        """The engine of what always runs the same way: in INT8 if the network is trained for that, else in FP32."""
        if always_precision(self._network, self._writer.forms, place, self._writer.targets) == "int8":
            return self._engine(f"{name}-int8", part.name, part, "int8", place, ALWAYS, source)
        return self._engine(name, part.name, part, "fp32", place, ALWAYS, source)

    def _engine(
        self, name: str, graph: str, part: Part, precision: Precision, place: int, option: int, source: str = FEATURES
    ) -> Engine:
        """One engine, with a file for each layout that it takes.

        Args:
            name: beginning of the names of its files.
            graph: name of its graph.
            part: folded layers that it computes.
            precision: precision of its arithmetic.
            place: index of the block; that of the last and one for the head.
            option: index of the option, or ``ALWAYS``.
            source: name of its input.
        """
        inputs = _IMAGES if source == IMAGES else self._inputs(place, precision)
        if precision != "int8":
            dtype, dialect = _DTYPES[precision], self._dialect
            content = {
                layout: float_engine(graph, part, dtype, dialect, takes=grid, source=source)
                for layout, grid in inputs.items()
            }
            return self._add(f"{_FOLDERS[self._runtime]}/{name}", precision, content)
        gives = self.grids[place] if self._uint8 and place < len(self.grids) else None
        write = tensorrt_engine if self._runtime == "tensorrt" else onnxruntime_engine
        forms = self._writer.forms
        content = {
            layout: write(graph, forms.of(self._runtime, part, place, option, grid, gives), source)
            for layout, grid in inputs.items()
        }
        return self._add(f"{self._runtime}/{name}", precision, content, "float32" if gives is None else "uint8")

    def _inputs(self, place: int, precision: Precision) -> Inputs:
        """Layouts that an engine reads by itself; the runtime converts features that arrive in another.

        If features may hold what no grid does, converting them would change them, and every engine reads both.
        """
        if not self._uint8:
            return {"float32": None}
        grid = self.grids[place - 1]
        if self._both:
            return {"float32": None, "uint8": grid}
        return {"uint8": grid} if precision == "int8" else {"float32": None}

    def _add(
        self, stem: str, precision: Precision, content: Mapping[Layout, bytes], output: Layout = "float32"
    ) -> Engine:
        paths = {layout: f"{stem}.onnx" if layout == "float32" else f"{stem}-from-{layout}.onnx" for layout in content}
        self._writer.files.update({paths[layout]: data for layout, data in content.items()})
        return Engine(precision=precision, output=output, files=paths)


def gives_beyond_grid(network: DFSNetwork) -> bool:
    """Whether a skip gives values that the grid of its group does not hold.

    So do skipped blocks of DFS and SkipNet that change shape: they leave out the relu, and their output is negative in
    parts.
    """
    return any(
        not block.graphs.free
        and not block.graphs.skip_after
        and not block.graphs.after.identity
        and any(option.skips for option in network.options_of(block.shape.index))
        for block in network.blocks
    )


def feature_grids(network: DFSNetwork, ranges: Ranges) -> list[Grid]:
    """The uint8 grid of each block's output, the stem's first: one for each group.

    It holds what INT8 engines give; and what reaches them from others, if it is converted on the way.
    """
    groups = [block.group for block in network.architecture.blocks]
    beyond = gives_beyond_grid(network)
    widest: dict[int, Range] = {}
    for key, value in ranges.items():
        place = key.block if key.tensor == OUTPUT else key.block - 1
        wanted = key.tensor == OUTPUT or (key.tensor == INPUT and not beyond)
        if key.option != STATIC and wanted and 0 <= place < len(groups):
            before = widest.get(groups[place], Range(0.0, 0.0))
            widest[groups[place]] = Range(min(before.low, value.low), max(before.high, value.high))
    return [Grid.uint8(widest.get(group, Range(0.0, 1.0))) for group in groups]


def always_precision(
    network: DFSNetwork, forms: Int8Forms, place: int, targets: Sequence[Precision]
) -> Literal["int8", "fp32"]:
    """Precision of what always runs the same way: stem, head, and the skip of a block.

    Args:
        network: the reference.
        forms: forms in INT8 of its parts.
        place: index of the block; 0 for the stem, and that of the last block and one for the head.
        targets: precisions to make.
    """
    wanted = engine_precision(Option(network.graphs.always), targets)
    return "int8" if wanted == "int8" and forms.ranges_of(place, ALWAYS) else "fp32"


def static_engine(
    name: str, parts: Sequence[Part | Int8Part], *, dtype: Float = np.float32, dialect: Dialect = ONNXRUNTIME
) -> bytes:
    """A static baseline: the static network as one graph, ``images`` (N, C, H, W) to ``output`` (N, classes), float32.

    Args:
        name: name of the graph.
        parts: stem, blocks and head; those in INT8 take their features as the part before gives them.
        dtype: float type of the arithmetic of the others.
        dialect: form of the graph.
    """
    first, last = (part.part if isinstance(part, Int8Part) else part for part in (parts[0], parts[-1]))
    graph = GraphBuilder(name, dialect.opset)
    x, grid = graph.input(IMAGES, np.float32, (BATCH, *first.in_shape)), None
    if dtype is not np.float32:
        x = cast(graph, x, dtype)
    for part in parts:
        prefix = f"{part.part.name if isinstance(part, Int8Part) else part.name}_"
        if isinstance(part, Part):
            x, grid = float_part(graph, dequantize(graph, f"{prefix}features", x, grid), part, dtype, prefix), None
        elif dialect == TENSORRT:
            x = tensorrt_part(graph, x, part, prefix)
        else:
            x, grid = onnxruntime_part(graph, x, part, prefix), part.gives
    x = x if dtype is np.float32 else cast(graph, x, np.float32)
    graph.output(x, "output", np.float32, (BATCH, *last.out_shape))
    return graph.build()
