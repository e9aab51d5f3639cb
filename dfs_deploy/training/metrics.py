"""The metrics log: one JSON object a line, a line a step; and the same for TensorBoard.

Schema 1. Every record has ``event``, ``stage`` and ``step`` (steps taken in that stage), but the first, which has the
job:

- ``run``: ``schema``, ``version`` of dfs-deploy, ``job`` (see :class:`dfs_deploy.training.job.Job`), ``architecture``,
  ``options``, ``policy`` (an option for each gated block, or ``null``), ``cost`` (see the recipe), ``images`` of the
  splits, ``processes``.
- ``step``: ``loss`` (what is minimised), ``accuracy`` (share of the batch classified correctly), ``cost``
  (full-precision blocks that the batch cost), ``percentage`` (the same in percent), ``alpha`` (with its sign) and
  ``lr``, one an optimizer: the backbone's before the gate's.
- ``evaluation``: ``split``, ``images``, ``top1``, ``percentage``, ``option_share`` (a list for each gated block, a
  share for each option) and ``paths``.
- ``time``: ``seconds`` and ``steps`` that a stage took since the run was started or resumed, evaluations left out.

All but ``time`` depend on the job alone: a run that was stopped and resumed writes the lines that one never stopped
writes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dfs_deploy.errors import CheckpointError, DataError
from dfs_deploy.io.files import UnfitFileError, check_file, read_file
from dfs_deploy.io.json_files import MAX_LOG, MalformedError, decode_json
from dfs_deploy.io.text import first_line
from dfs_deploy.system.libraries import required

SCHEMA = 1

Record = Mapping[str, Any]


class MetricsLog:
    """Appends records to a file.

    Args:
        path: the file; made where it is missing.
        keep: bytes of it that stand; what was written later, by a run that was stopped, is cut off.
        tensorboard: folder for TensorBoard's events; ``None`` for none.

    Raises:
        CheckpointError: fewer bytes are there than are to stand, or no regular file.
        MissingExtraError: TensorBoard is wanted and not installed.
    """

    def __init__(self, path: Path, keep: int, tensorboard: Path | None = None) -> None:
        with contextlib.suppress(FileNotFoundError):
            try:
                check_file(path, MAX_LOG, follow=False)
            except UnfitFileError as error:  # opening a FIFO would wait, and a link may lead anywhere
                raise CheckpointError(f"{path} {first_line(error)}; move it away and begin a new run") from error
        self._stream = path.open("ab")
        there = os.fstat(self._stream.fileno()).st_size
        if there < keep:  # truncating would fill it up with zeros
            self._stream.close()
            raise CheckpointError(
                f"{path} holds {there} bytes, expected at least the {keep} that the saved state counts on; put it back,"
                " or begin a new run"
            )
        self._stream.truncate(keep)
        self._stream.seek(0, os.SEEK_END)
        self._writer: Any = None
        if tensorboard is not None:
            self._writer = _summary_writer()(str(tensorboard))

    def write(self, records: Iterable[Record]) -> None:
        """Appends records, and hands them to the system."""
        for record in records:
            self._stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._show(record)
        self._stream.flush()

    def sync(self) -> int:
        """Waits until all of it is on disk; gives its size in bytes."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        """Ends writing."""
        self._stream.close()
        if self._writer is not None:
            self._writer.close()

    def _show(self, record: Record) -> None:
        if self._writer is None or record["event"] not in ("step", "evaluation"):
            return
        for key, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{record['stage']}/{record['event']}/{key}", value, record["step"])


def check_tensorboard() -> None:
    """Raises MissingExtraError if TensorBoard is not installed."""
    _summary_writer()


def _summary_writer() -> Any:
    with required():
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads a metrics log; a last line that was cut off by a stop is left out.

    Args:
        path: a ``metrics.jsonl``.

    Returns:
        The records, in order.

    Raises:
        DataError: it cannot be read, or a line is no JSON object.
    """
    path = Path(path)
    try:
        lines = read_file(path, MAX_LOG).split(b"\n")
        return [decode_json(line, dict[str, Any]) for line in lines[:-1]]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); give the metrics.jsonl of a run") from error
    except MalformedError as error:
        raise DataError(f"{path} is no metrics log ({error}); give the metrics.jsonl of a run") from error
