"""What an option costs on a device: a table of measured times, which training can aim for instead of FLOPs.

``dfs-deploy bench --save-costs FILE`` writes one on the target; ``dfs-deploy train --cost FILE`` reads it, on another
machine if need be. docs/training.md describes the file for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from dfs_deploy.errors import DataError
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.json_files import MalformedError, Name, read_json
from dfs_deploy.io.text import first_line
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
FULL = "full"

_Count = Annotated[int, Meta(ge=1, le=1 << 16)]
_Microseconds = Annotated[float, Meta(ge=0.0, le=1e9)]


class OptionCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One option of one block.

    Attributes:
        block: index of the gated block, from 1.
        option: name of the option.
        engine_us: median time of the engine that serves it, in microseconds, at batch 1; 0 where nothing runs.
        precision: precision of that engine; ``None`` if nothing runs.
    """

    block: _Count
    option: Name
    engine_us: _Microseconds
    precision: Precision | None


class LatencyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measured times of every option of every gated block.

    Attributes:
        schema_version: version of this format.
        kind: tells the file from other JSON.
        bundle: digest of the bundle that was timed.
        machine: where, in words.
        runtime: name and version.
        threads: threads that one engine might use.
        groups: blocks in each group of the architecture.
        widths: channels of each group.
        image_shape: channels, height and width of an input.
        gate_us: median time of one step of the gate, in microseconds: spent at each gated block, whatever it decides.
        entries: one for each gated block and option.
    """

    schema_version: int
    kind: Literal["dfs-deploy latency table"]
    bundle: Name
    machine: Name
    runtime: Name
    threads: _Count
    groups: Annotated[list[_Count], Meta(max_length=16)]
    widths: Annotated[list[_Count], Meta(max_length=16)]
    image_shape: tuple[_Count, _Count, _Count]
    gate_us: _Microseconds
    entries: list[OptionCost]

    def costs(self, architecture: Architecture, options: Options) -> NDArray[np.float64]:
        """What each option costs at each block, in full-precision blocks, the gate's step included.

        ``cost[i, k] = (engine[i, k] + gate) / mean over blocks of (engine[i, full] + gate)``. So the mean over the
        blocks is the share of the time that all blocks take in full precision: it takes the place of Section 4's
        computation percentage, for which ``cost[i, k]`` is ``(bits / 32) ** 2`` at every block.

        Args:
            architecture: architecture of the network to train.
            options: options that its gate chooses from; the table may hold more.

        Returns:
            (gated blocks, options) float64.

        Raises:
            DataError: the table is of another network, lacks an option, or says nothing.
        """
        import numpy as np

        shape = (tuple(self.groups), tuple(self.widths), self.image_shape)
        wanted = (architecture.groups, architecture.widths, architecture.image_shape)
        if shape != wanted:
            raise DataError(
                f"latency table of a network of groups, widths and images {shape}, expected {wanted}; measure a bundle"
                " of this architecture with bench --save-costs"
            )
        times = {(entry.block, entry.option): entry.engine_us for entry in self.entries}
        blocks = range(1, architecture.gated_blocks + 1)
        for name in (*options.names, FULL):
            if any((block, name) not in times for block in blocks):
                known = ", ".join(dict.fromkeys(entry.option for entry in self.entries))
                raise DataError(
                    f"latency table without option {name} at every block (it has {known}); measure a bundle with it"
                )
        full = np.mean([times[block, FULL] + self.gate_us for block in blocks])
        if not full > 0.0:
            raise DataError("latency table whose full-precision blocks take no time; measure again")
        return np.array([[(times[block, name] + self.gate_us) / full for name in options.names] for block in blocks])


def load_costs(path: str | Path) -> LatencyTable:
    """Reads a table strictly.

    Raises:
        DataError: the file cannot be read, or is no such table.
    """
    try:
        table = read_json(Path(path), LatencyTable)
    except OSError as error:
        raise DataError(
            f"latency table {path} cannot be read ({first_line(error)}); write one with bench --save-costs"
        ) from error
    except MalformedError as error:
        raise DataError(
            f"{path} is no latency table ({error}); write one with dfs-deploy bench --save-costs"
        ) from error
    if table.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path} is a latency table of schema version {table.schema_version}, expected {SCHEMA_VERSION}; write it"
            " again with bench --save-costs"
        )
    named = [(entry.block, entry.option) for entry in table.entries]
    if len(set(named)) != len(named):
        raise DataError(f"{path} has an option of a block twice; write it again with bench --save-costs")
    return table


def save_costs(path: str | Path, table: LatencyTable) -> None:
    """Writes a table, whole or not at all."""
    write_whole(Path(path), msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
