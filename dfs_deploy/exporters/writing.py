"""Writing every engine of a bundle, for each runtime in the layout that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dfs_deploy.bundle.manifest import BlockEngines, Engine, Layout, RuntimeEngines
from dfs_deploy.calibration import STATIC, CalibratedRange, TensorKey
from dfs_deploy.exporters.engines import (
    ONNXRUNTIME,
    TENSORRT,
    Grid,
    block_engine,
    gate_engine,
    head_engine,
    skip_engine,
    stem_engine,
)
from dfs_deploy.exporters.quantized import BlockRanges, onnxruntime_block, uint8_grid
from dfs_deploy.exporters.quantized_tensorrt import tensorrt_block
from dfs_deploy.exporters.split import (
    BlockPart,
    Range,
    split_block,
    split_conv,
    split_gate,
    split_head,
    split_skip,
    split_stem,
)
from dfs_deploy.exporters.static import FloatStep, Int8Step, StemRanges, Step, straight_line
from dfs_deploy.models import DFSNetwork
from dfs_deploy.options import FULL_BITS, Option, Precision, engine_precision

_DIALECTS = {"onnxruntime": ONNXRUNTIME, "tensorrt": TENSORRT}
_FOLDERS = {"onnxruntime": "common", "tensorrt": "tensorrt"}
"""Where the float engines lie; those in ``common`` are standard ONNX for any runtime that reads its opset."""

_DTYPES: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}


@dataclass
class EngineWriter:
    """Makes the files of a bundle.

    Args:
        network: the reference, in evaluation mode.
        ranges: an interval for each tensor of each option that INT8 engines serve.
        targets: precisions to make.
        weight_bits: bits of INT8 weights, 8 or 7.

    Attributes:
        files: what was made so far, content by path in the bundle.
    """

    network: DFSNetwork
    ranges: Mapping[TensorKey, CalibratedRange]
    targets: Sequence[Precision]
    weight_bits: int
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, runtime: str, progress: Callable[[float], None]) -> RuntimeEngines:
        """Makes the engines for one runtime.

        ONNX Runtime's INT8 engines end in uint8, so every engine there exists for both layouts of input; TensorRT's
        features are float32 at every boundary, and come with their mean over the map. The gate is the same for all.
        """
        dialect = _DIALECTS[runtime]
        network, shapes = self.network, self.network.architecture.blocks
        grids = self._feature_grids()
        passes_bytes = runtime == "onnxruntime" and any(key.option != STATIC for key in self.ranges)
        layouts: tuple[Layout, ...] = ("float32", "uint8") if passes_bytes else ("float32",)
        blocks = []
        arriving: set[Layout] = {"float32"}
        for index, block in enumerate(network.blocks[1:], 1):
            inputs: dict[Layout, Grid | None] = {
                layout: grids[index - 1] if layout == "uint8" else None
                for layout in layouts
                if network.policy is None or layout in arriving  # a policy fixes which layout can arrive
            }
            full = split_block(block, Option(FULL_BITS))
            projection, skip = split_skip(block), None
            skips = any(option.skips for option in network.options_of(index))
            if projection is not None and skips:
                skip = self._add(
                    f"{_FOLDERS[runtime]}/block-{index:02d}-skip",
                    "fp32",
                    {
                        layout: skip_engine(f"block_{index}_skip", full, projection, grid, dialect)
                        for layout, grid in inputs.items()
                    },
                )
            options = {
                option.name: self._option_engines(runtime, index, option, inputs)
                for option in network.options_of(index)
                if not option.skips
            }
            made = [engine for served in options.values() for engine in served] + ([] if skip is None else [skip])
            arriving = (arriving if skips and skip is None else set()) | {engine.output for engine in made}
            blocks.append(BlockEngines(index=index, skip=skip, options=options))
            progress(index / len(shapes))
        gate = split_gate(network)
        if gate is not None:
            self.files["common/gate.onnx"] = gate_engine(gate)
        size = shapes[-1].out_shape[1:]
        heads: dict[Layout, bytes] = {
            layout: head_engine(split_head(network), size, grids[-1] if layout == "uint8" else None, dialect)
            for layout in layouts
            if network.policy is None or layout in arriving
        }
        stem = stem_engine(*split_stem(network), dialect)
        return RuntimeEngines(
            stem=self._add(f"{_FOLDERS[runtime]}/stem", "fp32", {"float32": stem}),
            blocks=blocks,
            head=self._add(f"{_FOLDERS[runtime]}/head", "fp32", heads),
            gate=None if gate is None else "common/gate.onnx",
            feature_scales=[grid.scale for grid in grids],
            static=self._static(runtime),
        )

    def _static(self, runtime: str) -> dict[Precision, str]:
        """The whole backbone in each target precision: what a user would deploy who has no gate."""
        network, dialect = self.network, _DIALECTS[runtime]
        stem = split_conv(network.backbone.stem_conv, network.backbone.stem_norm)
        blocks = [split_block(block, Option(FULL_BITS)) for block in network.blocks]
        head = split_head(network)
        made: dict[Precision, bytes] = {}
        for precision in self.targets:
            if precision == "int8":
                chosen = self._static_int8_steps(blocks)
                if chosen is not None:
                    steps, stem_ranges = chosen
                    made[precision] = straight_line(
                        "static_int8",
                        stem,
                        steps,
                        head,
                        stem_ranges=stem_ranges,
                        weight_bits=self.weight_bits,
                        dialect=dialect,
                    )
            else:
                floats = [FloatStep(block) for block in blocks]
                made[precision] = straight_line(
                    f"static_{precision}", stem, floats, head, dtype=_DTYPES[precision], dialect=dialect
                )
        files: dict[Precision, str] = {p: f"{runtime}/static-{p}.onnx" for p in made}
        self.files.update({files[p]: data for p, data in made.items()})
        return files

    def _static_int8_steps(self, blocks: Sequence[BlockPart]) -> tuple[list[Step], StemRanges | None] | None:
        """All blocks in INT8 by the static network's own ranges; or, without data, by the ranges of an 8-bit option."""
        images = self.ranges.get(TensorKey(0, STATIC, "images"))
        if images is not None:
            steps: list[Step] = [
                Int8Step(block, BlockRanges.calibrated(self.ranges, i, STATIC)) for i, block in enumerate(blocks)
            ]
            first = steps[0]
            assert isinstance(first, Int8Step)  # noqa: S101 (made two lines above)
            return steps, StemRanges(Range(images.low, images.high), first.ranges.conv1)
        gated_blocks = len(blocks) - 1
        options = [
            position
            for position in sorted({key.option for key in self.ranges})
            if len({key.block for key in self.ranges if key.option == position}) == gated_blocks
        ]
        if not options:
            return None
        best = max(options, key=lambda position: self.network.options[position].bits)
        gated: list[Step] = [
            Int8Step(block, BlockRanges.calibrated(self.ranges, i, best)) for i, block in enumerate(blocks[1:], 1)
        ]
        return [FloatStep(blocks[0]), *gated], None

    def _option_engines(
        self, runtime: str, index: int, option: Option, inputs: Mapping[Layout, Grid | None]
    ) -> list[Engine]:
        """The engine of an option's precision; for ONNX Runtime also one in FP32, for CPUs where that is faster."""
        precision = engine_precision(option, self.targets)
        part = split_block(self.network.blocks[index], option)
        name, graph = f"block-{index:02d}-{option.name}", f"block_{index}_option_{option.name}"
        engines = []
        if precision == "int8":
            engines.append(self._int8_engine(runtime, name, graph, index, option, part, inputs))
        floats: list[Precision] = ["fp16"] if precision == "fp16" else []
        if runtime == "onnxruntime" or precision == "fp32":
            floats.append("fp32")
        return engines + [
            self._add(
                f"{_FOLDERS[runtime]}/{name}-{p}",
                p,
                {
                    layout: block_engine(f"{graph}_{p}", part, _DTYPES[p], grid, _DIALECTS[runtime])
                    for layout, grid in inputs.items()
                },
            )
            for p in floats
        ]

    def _int8_engine(
        self,
        runtime: str,
        name: str,
        graph: str,
        index: int,
        option: Option,
        part: BlockPart,
        inputs: Mapping[Layout, Grid | None],
    ) -> Engine:
        ranges = BlockRanges.calibrated(self.ranges, index, self.network.options.bits.index(option.bits))
        if runtime == "tensorrt":
            return self._add(
                f"tensorrt/{name}-int8", "int8", {"float32": tensorrt_block(f"{graph}_int8", part, ranges)}
            )
        content = {
            layout: onnxruntime_block(f"{graph}_int8", part, ranges, grid, self.weight_bits)
            for layout, grid in inputs.items()
        }
        return self._add(f"onnxruntime/{name}-int8", "int8", content, output="uint8")

    def _add(
        self, stem: str, precision: Precision, content: Mapping[Layout, bytes], output: Layout = "float32"
    ) -> Engine:
        paths = {layout: f"{stem}.onnx" if layout == "float32" else f"{stem}-from-{layout}.onnx" for layout in content}
        self.files.update({paths[layout]: data for layout, data in content.items()})
        return Engine(precision=precision, output=output, files=paths)

    def _feature_grids(self) -> list[Grid]:
        """The uint8 grid of each block's output; one a group, whatever the option, so that a skip can pass it on."""
        groups = [block.group for block in self.network.architecture.blocks]
        highest = {
            groups[key.block]: value.high
            for key, value in self.ranges.items()
            if key.tensor == "output" and key.option != STATIC
        }
        return [uint8_grid(Range(0.0, highest.get(group, 1.0))) for group in groups]
