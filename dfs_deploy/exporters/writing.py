"""Every engine of a bundle, static baselines included, written for each runtime in the form that it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dfs_deploy.bundle.manifest import BlockEngines, Engine, Layout, RuntimeEngines
from dfs_deploy.calibration import STATIC, CalibratedRange, Range, TensorKey, block_ranges
from dfs_deploy.exporters.engines import (
    BATCH,
    ONNXRUNTIME,
    TENSORRT,
    Dialect,
    block_engine,
    cast,
    classify,
    convolve,
    gate_engine,
    head_engine,
    residual,
    skip_engine,
    stem_engine,
)
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.exporters.int8 import BlockRanges, Grid, Int8Block, Int8Conv
from dfs_deploy.exporters.int8_graphs import (
    dequantize,
    onnxruntime_block,
    onnxruntime_conv,
    onnxruntime_engine,
    quantize,
    quantized,
    tensorrt_block,
    tensorrt_conv,
    tensorrt_engine,
)
from dfs_deploy.exporters.split import (
    BlockPart,
    ConvPart,
    HeadPart,
    split_block,
    split_conv,
    split_gate,
    split_head,
    split_skip,
    split_stem,
)
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import FULL_BITS, Option, Precision, engine_precision
from dfs_deploy.progress import Progress, silent

_DIALECTS = {"onnxruntime": ONNXRUNTIME, "tensorrt": TENSORRT}
_FOLDERS = {"onnxruntime": "common", "tensorrt": "tensorrt"}
"""Folders of the float engines; those in ``common`` are standard ONNX for any runtime that reads its opset."""

_DTYPES: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}
_GATE = "common/gate.onnx"

Inputs = Mapping[Layout, Grid | None]
"""Layouts in which features may reach an engine, with the grid of each."""


@dataclass
class EngineWriter:
    """Makes the files of a bundle.

    Args:
        network: the reference, in evaluation mode.
        ranges: an interval for each tensor of each option that INT8 engines run.
        targets: precisions to make.
        weight_bits: bits of INT8 weights for ONNX Runtime, 8 or 7.

    Attributes:
        files: content of the files made so far, by path in the bundle.
    """

    network: DFSNetwork
    ranges: Mapping[TensorKey, CalibratedRange]
    targets: Sequence[Precision]
    weight_bits: int
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, runtime: str, progress: Progress = silent) -> RuntimeEngines:
        """Makes the engines for one runtime.

        ONNX Runtime's INT8 engines end in uint8, so every engine there exists for both layouts of input; TensorRT's
        features are float32 at every boundary, and come with their mean over the map. The gate is the same for all.
        """
        progress(f"writing engines for {runtime}", 0.0)
        network, dialect, folder = self.network, _DIALECTS[runtime], _FOLDERS[runtime]
        grids = self._feature_grids()
        passes_uint8 = runtime == "onnxruntime" and any(key.option != STATIC for key in self.ranges)

        def inputs_from(block: int) -> Inputs:
            return {"float32": None, "uint8": grids[block]} if passes_uint8 else {"float32": None}

        stem = self._add(f"{folder}/stem", "fp32", {"float32": stem_engine(*split_stem(network), dialect)})
        blocks = []
        for index in range(1, len(network.blocks)):
            blocks.append(self._block_engines(runtime, index, inputs_from(index - 1)))
            progress(f"writing engines for {runtime}", index / len(network.blocks))
        head, shape = split_head(network), network.blocks[-1].shape.out_shape
        heads = {layout: head_engine(head, shape, grid, dialect) for layout, grid in inputs_from(-1).items()}
        gate = split_gate(network)
        if gate is not None:
            self.files[_GATE] = gate_engine(gate)
        return RuntimeEngines(
            stem=stem,
            blocks=blocks,
            head=self._add(f"{folder}/head", "fp32", heads),
            gate=None if gate is None else _GATE,
            feature_scales=[grid.scale for grid in grids],
            feature_zero_points=[0] * len(grids),
            static=self._static_engines(runtime),
        )

    def _block_engines(self, runtime: str, index: int, inputs: Inputs) -> BlockEngines:
        """The engines of a gated block: one per option, and its projection if a skip runs it."""
        block, dialect = self.network.blocks[index], _DIALECTS[runtime]
        stem = f"{_FOLDERS[runtime]}/block-{index:02d}"
        skip, options = None, {}
        for option in self.network.options_of(index):
            if not option.skips:
                options[option.name] = self._option_engines(runtime, index, option, inputs)
                continue
            projection, full = split_skip(block), split_block(block, Option(FULL_BITS))
            if projection is not None:
                made = {k: skip_engine(f"block_{index}_skip", full, projection, g, dialect) for k, g in inputs.items()}
                skip = self._add(f"{stem}-skip", "fp32", made)
        return BlockEngines(index=index, skip=skip, options=options)

    def _option_engines(self, runtime: str, index: int, option: Option, inputs: Inputs) -> list[Engine]:
        """The engine of an option's precision; for ONNX Runtime also one in FP32, for CPUs where that is faster."""
        part = split_block(self.network.blocks[index], option)
        name, graph = f"block-{index:02d}-{option.name}", f"block_{index}_option_{option.name}"
        precision = engine_precision(option, self.targets)
        precisions = [precision, "fp32"] if runtime == "onnxruntime" else [precision]
        engines = []
        for made in dict.fromkeys(precisions):
            if made == "int8":
                engines.append(self._int8_engine(runtime, name, f"{graph}_int8", part, option, inputs))
            elif made is not None:
                dtype, dialect = _DTYPES[made], _DIALECTS[runtime]
                content = {k: block_engine(f"{graph}_{made}", part, dtype, g, dialect) for k, g in inputs.items()}
                engines.append(self._add(f"{_FOLDERS[runtime]}/{name}-{made}", made, content))
        return engines

    def _int8_engine(
        self, runtime: str, name: str, graph: str, part: BlockPart, option: Option, inputs: Inputs
    ) -> Engine:
        ranges = block_ranges(self.ranges, part.shape.index, self.network.options.bits.index(option.bits))
        blocks = {layout: self._int8_block(runtime, part, ranges, grid) for layout, grid in inputs.items()}
        if runtime == "tensorrt":
            return self._add(
                f"tensorrt/{name}-int8", "int8", {k: tensorrt_engine(graph, block) for k, block in blocks.items()}
            )
        content = {layout: onnxruntime_engine(graph, block) for layout, block in blocks.items()}
        return self._add(f"onnxruntime/{name}-int8", "int8", content, output="uint8")

    def _int8_block(self, runtime: str, part: BlockPart, ranges: BlockRanges, features: Grid | None) -> Int8Block:
        if runtime == "tensorrt":
            return Int8Block.for_tensorrt(part, ranges)
        return Int8Block.for_onnxruntime(part, ranges, features, self.weight_bits)

    def _static_engines(self, runtime: str) -> dict[Precision, str]:
        """The whole backbone in each target precision, as a user would deploy it without a gate."""
        network, dialect = self.network, _DIALECTS[runtime]
        stem = split_conv(network.backbone.stem_conv, network.backbone.stem_norm)
        parts, head = [split_block(block, Option(FULL_BITS)) for block in network.blocks], split_head(network)
        files: dict[Precision, str] = {}
        for precision in self.targets:
            dtype = _DTYPES.get(precision, np.float32)
            chosen = self._static_int8(runtime, stem, parts) if precision == "int8" else (stem, parts)
            if chosen is not None:
                first, blocks = chosen
                engine = static_engine(f"static_{precision}", first, blocks, head, dtype=dtype, dialect=dialect)
                files[precision] = f"{runtime}/static-{precision}.onnx"
                self.files[files[precision]] = engine
        return files

    def _static_int8(
        self, runtime: str, stem: ConvPart, parts: Sequence[BlockPart]
    ) -> tuple[ConvPart | Int8Conv, list[BlockPart | Int8Block]] | None:
        """Stem and blocks in INT8 by the static network's own ranges, which were measured on data.

        Without data, the gated blocks by the ranges of an option of up to 8 bits, or nothing if none covers them all.
        """
        images = self.ranges.get(TensorKey(0, STATIC, "images"))
        first: ConvPart | Int8Conv = stem
        blocks: list[BlockPart | Int8Block] = []
        option, grid = STATIC, None
        if images is None:
            covered = Counter(key.option for key in self.ranges if key.tensor == "output")
            complete = [option for option, count in covered.items() if count == len(parts) - 1]
            if not complete:
                return None
            option = max(complete, key=self.network.options.bits.__getitem__)
            blocks.append(parts[0])
        elif runtime == "tensorrt":
            first = Int8Conv.for_tensorrt(stem, Grid.int8(images), None)
        else:
            grid = Grid.uint8(Range(0.0, self.ranges[TensorKey(0, STATIC, "conv1")].high))
            first = Int8Conv.for_onnxruntime(stem, self.weight_bits, Grid.uint8(images), None, grid)
        for index in range(len(blocks), len(parts)):
            block = self._int8_block(runtime, parts[index], block_ranges(self.ranges, index, option), grid)
            blocks.append(block)
            grid = block.output
        return first, blocks

    def _add(
        self, stem: str, precision: Precision, content: Mapping[Layout, bytes], output: Layout = "float32"
    ) -> Engine:
        paths = {layout: f"{stem}.onnx" if layout == "float32" else f"{stem}-from-{layout}.onnx" for layout in content}
        self.files.update({paths[layout]: data for layout, data in content.items()})
        return Engine(precision=precision, output=output, files=paths)

    def _feature_grids(self) -> list[Grid]:
        """The uint8 grid of each block's output; one per group, whatever the option, so that a skip can pass it on."""
        groups = [block.group for block in self.network.architecture.blocks]
        highest = {
            groups[key.block]: value.high
            for key, value in self.ranges.items()
            if key.tensor == "output" and key.option != STATIC
        }
        return [Grid.uint8(Range(0.0, highest.get(group, 1.0))) for group in groups]


def static_engine(
    name: str,
    stem: ConvPart | Int8Conv,
    blocks: Sequence[BlockPart | Int8Block],
    head: HeadPart,
    *,
    dtype: type[np.floating] = np.float32,
    dialect: Dialect = ONNXRUNTIME,
) -> bytes:
    """A static baseline: the whole backbone as one graph, ``images`` (N, C, H, W) to ``output`` (N, classes), float32.

    An INT8 block takes its features as the part before it gives them, and no block in float arithmetic, which computes
    in ``dtype``, comes after one in INT8.
    """
    graph = GraphBuilder(name, dialect.opset)
    images = graph.input("images", np.float32, (BATCH, stem.weight.shape[1], *blocks[0].shape.in_shape[1:]))
    grid: Grid | None = None
    if isinstance(stem, ConvPart):
        x = cast(graph, images, dtype) if dtype is not np.float32 else images
        x = graph.node("Relu", convolve(graph, "stem", x, stem, dtype))
    elif dialect == TENSORRT:
        x = quantized(graph, "stem_images", images, stem.takes)
        x = graph.node("Relu", tensorrt_conv(graph, "stem_conv", x, stem))
    else:
        x = onnxruntime_conv(graph, "stem_conv", quantize(graph, "stem_images", images, stem.takes), stem)
        grid = stem.gives
    for index, block in enumerate(blocks):
        prefix = f"block_{index}_"
        if isinstance(block, BlockPart):
            x = residual(graph, x, block, dtype, prefix)
        elif dialect == TENSORRT:
            x = tensorrt_block(graph, x, block, prefix)
        else:
            x, grid = onnxruntime_block(graph, x, block, prefix), block.output
    logits = classify(graph, dequantize(graph, "head_input", x, grid), head, dtype)
    if dtype is not np.float32:
        logits = cast(graph, logits, np.float32)
    graph.output(logits, "output", np.float32, (BATCH, head.weight.shape[0]))
    return graph.build()
