"""Latency table: the measured cost of each option on a device, which training can aim for instead of FLOPs.

``dfs-deploy train --cost latency`` measures one here; ``dfs-deploy bench --save-costs FILE`` writes one on a target,
which ``dfs-deploy train --cost FILE`` reads, on another machine if need be. docs/training.md describes the file for
people.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import DataError
from dfs_deploy.io.json_files import Name, VersionedFormat
from dfs_deploy.network import MAX_BLOCKS, Architecture, Shape, cifar_resnet
from dfs_deploy.options import Options, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

SCHEMA_VERSION: Final = 2
"""Version 2 describes the network by the shapes of its blocks; version 1, by groups and widths, is still read."""

KIND: Final = "dfs-deploy latency table"

_Count = Annotated[int, Meta(ge=1, le=1 << 16)]
_Microseconds = Annotated[float, Meta(ge=0.0, le=1e9)]


class OptionCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One option of one block.

    Attributes:
        block: index of the block, from 1.
        option: name of the option.
        engine_us: median time of the engine that runs for it, in microseconds, at batch 1; 0 if nothing runs.
        precision: precision of that engine; ``None`` if nothing runs.
    """

    block: _Count
    option: Name
    engine_us: _Microseconds
    precision: Precision | None


class LatencyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measured times of every block after the first, for every option that it may run.

    Attributes:
        schema_version: version of this format.
        kind: mark that distinguishes the file from other JSON.
        bundle: digest of the bundle that was timed.
        machine: machine that it was measured on, in words.
        runtime: name and version of the runtime.
        threads: threads that one engine might use.
        image_shape: channels, height and width of an input.
        block_shapes: channels, height and width of each block's output, the first block included.
        gate_us: median time of one step of the gate, in microseconds: spent at each decided block, whatever the gate
            decides.
        entries: one entry for each block and each option that it may run.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    kind: Literal["dfs-deploy latency table"] = KIND
    bundle: Name
    machine: Name
    runtime: Name
    threads: _Count
    image_shape: Shape
    block_shapes: Annotated[tuple[Shape, ...], Meta(min_length=1, max_length=MAX_BLOCKS)]
    gate_us: _Microseconds
    entries: list[OptionCost]

    def costs(self, architecture: Architecture, options: Options, *, gated: bool = True) -> NDArray[np.float64]:
        """Cost of each option at each block, as a share of the dearest path that the options allow, gates included.

        ``cost[i, k] = (engine[i, k] + gate) / mean over decided blocks of max over k of (engine[i, k] + gate)``. So the
        mean over the decided blocks is the share of the time of the slowest path: every block at its slowest option. It
        takes the place of Section 4's computation percentage, for which ``cost[i, k]`` is ``(bits / 32) ** 2`` times
        the block's weight.

        Args:
            architecture: architecture of the network to train.
            options: options that its gate chooses from; the table may hold more.
            gated: whether a gate steps before each block. A static policy has none, and its blocks cost their engines'
                time alone, as a share of the same whole.

        Returns:
            (blocks after the first, options) float64; zero for a fixed block, and for an option that a block may not
            run.

        Raises:
            DataError: the table is of another network, lacks an option, or says nothing.
        """
        import numpy as np

        if problem := self._unlike(architecture):
            raise DataError(
                f"latency table of another network: {problem}; measure a bundle of this architecture with"
                " bench --save-costs"
            )
        times = self._engine_us
        costs = np.zeros((architecture.gated_blocks, len(options)))
        for index in architecture.decided(options):
            for option in architecture.blocks[index].choices(options):
                if (index, option.name) not in times:
                    known = ", ".join(dict.fromkeys(entry.option for entry in self.entries))
                    raise DataError(
                        f"latency table without option {option.name} at every block that may run it (it has {known});"
                        " measure a bundle with it"
                    )
                costs[index - 1, options.names.index(option.name)] = times[index, option.name]
        decided = len(architecture.decided(options))
        if not decided:
            return costs
        whole = costs.max(1).sum() / decided + self.gate_us
        if gated:
            costs[architecture.allowed(options)] += self.gate_us
            costs[[block.fixed(options) for block in architecture.blocks[1:]]] = 0.0
        if not whole > 0.0:
            raise DataError("latency table whose blocks take no time; measure again")
        shares: NDArray[np.float64] = costs / whole
        return shares

    def predict_us(self, path: NDArray[np.integer], options: Options, *, gated: bool = True) -> NDArray[np.float64]:
        """Predicts how long the decided blocks and their gate steps take, from the engines' own times.

        Stem, first block, fixed blocks, head and dispatch are not in it.

        Args:
            path: (N, blocks after the first) option indices; those of fixed blocks are not looked at.
            options: options that they are indices of; the table may hold more.
            gated: whether a gate steps before each block, as it does not under a static policy.

        Returns:
            (N,) float64 microseconds.

        Raises:
            DataError: a path of another number of blocks, or one that takes an option without a time.
        """
        import numpy as np

        path = np.asarray(path)
        times = self._times(options, gated)
        if path.ndim != 2 or path.shape[1] != len(times):
            raise DataError(
                f"paths of shape {path.shape}, expected (N, {len(times)}), the blocks of the latency table; measure a"
                " bundle of this architecture with bench --save-costs"
            )
        taken = times[np.arange(len(times)), path]
        self._check_known(taken)
        total: NDArray[np.float64] = taken.sum(1)
        return total

    def predict_mean_us(self, shares: ArrayLike, options: Options, *, gated: bool = True) -> float:
        """Predicts the mean time of the decided blocks and their gate steps; see ``predict_us``.

        Args:
            shares: (blocks after the first, options) share of the images that took each option.
            options: the options.
            gated: whether a gate steps before each block; see ``predict_us``.

        Returns:
            Microseconds.

        Raises:
            DataError: shares of another shape, or of an option without a time.
        """
        import numpy as np

        times, weights = self._times(options, gated), np.asarray(shares, np.float64)
        if weights.shape != times.shape:
            raise DataError(
                f"shares of shape {weights.shape}, expected {times.shape}, blocks and options of the latency table;"
                " measure a bundle of this architecture with bench --save-costs"
            )
        taken = np.where(weights > 0.0, times, 0.0)
        self._check_known(taken)
        return float((weights * taken).sum())

    def dearest_us(self, options: Options) -> float:
        """Predicted time of the dearest path with its gate steps, in microseconds: the 100 % of ``costs``."""
        import numpy as np

        times = self._times(options)
        return float(np.where(np.isnan(times), 0.0, times).max(1, initial=0.0).sum())

    @property
    def _engine_us(self) -> dict[tuple[int, str], float]:
        return {(entry.block, entry.option): entry.engine_us for entry in self.entries}

    def _times(self, options: Options, gated: bool = True) -> NDArray[np.float64]:
        """(blocks after the first, options) microseconds with the gate; 0 for a fixed block, NaN if none is known."""
        import numpy as np

        known = self._engine_us
        rows = np.array(
            [[known.get((index, name), np.nan) for name in options.names] for index in range(1, len(self.block_shapes))]
        ).reshape(-1, len(options))
        fixed = np.isfinite(rows).sum(1, keepdims=True) <= 1
        return np.where(fixed, 0.0, rows + (self.gate_us if gated else 0.0))

    def _check_known(self, taken: NDArray[np.float64]) -> None:
        import numpy as np

        if not np.isfinite(taken).all():
            known = ", ".join(dict.fromkeys(entry.option for entry in self.entries))
            raise DataError(
                f"latency table without the time of an option that a block ran (it has {known}); measure this bundle"
                " with bench --save-costs"
            )

    def _unlike(self, architecture: Architecture) -> str | None:
        blocks = architecture.blocks
        if self.image_shape != architecture.image_shape:
            return f"images of {self.image_shape}, expected {architecture.image_shape}"
        if len(self.block_shapes) != len(blocks):
            return f"{len(self.block_shapes)} blocks, expected {len(blocks)}"
        for shape, block in zip(self.block_shapes, blocks, strict=True):
            if shape != block.out_shape:
                return f"block {block.index} gives {shape}, expected {block.out_shape}"
        return None


class _LatencyTable1(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of version 1; see ``LatencyTable``."""

    schema_version: Literal[1]
    kind: Literal["dfs-deploy latency table"] = KIND
    bundle: Name
    machine: Name
    runtime: Name
    threads: _Count
    groups: Annotated[list[_Count], Meta(max_length=16)]
    widths: Annotated[list[_Count], Meta(max_length=16)]
    image_shape: Shape
    gate_us: _Microseconds
    entries: list[OptionCost]


def _from_version_1(table: _LatencyTable1) -> LatencyTable:
    """Raises UsageError if its groups and widths describe no network."""
    values = msgspec.structs.asdict(table)
    groups, widths = tuple(values.pop("groups")), tuple(values.pop("widths"))
    blocks = cifar_resnet(groups, widths, image_shape=table.image_shape).blocks
    shapes = tuple(block.out_shape for block in blocks)
    return LatencyTable(**{**values, "schema_version": SCHEMA_VERSION, "block_shapes": shapes})


FORMAT = VersionedFormat(
    "latency table",
    LatencyTable,
    SCHEMA_VERSION,
    "write one with dfs-deploy bench --save-costs",
    error=DataError,
    mark=("kind", KIND),
    older={1: (_LatencyTable1, _from_version_1)},
)


def load_costs(path: str | Path) -> LatencyTable:
    """Reads a table strictly.

    Raises:
        DataError: the file cannot be read, or is no such table.
    """
    table = FORMAT.read(Path(path))
    named = [(entry.block, entry.option) for entry in table.entries]
    if len(set(named)) != len(named):
        raise DataError(f"{path} has an option of a block twice; write it again with bench --save-costs")
    return table


def save_costs(path: str | Path, table: LatencyTable) -> None:
    """Writes a table, whole or not at all."""
    FORMAT.write(Path(path), table)
