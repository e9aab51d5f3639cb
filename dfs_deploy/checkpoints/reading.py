"""Reading a checkpoint file without executing anything in it and without trusting the sizes that it claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dfs_deploy.bundle import source_of
from dfs_deploy.checkpoints.archives import check_archive
from dfs_deploy.checkpoints.pickled import MAX_TENSORS, NotDenseError
from dfs_deploy.errors import CheckpointError, UnsafeCheckpointError
from dfs_deploy.io.files import UnfitFileError, check_file
from dfs_deploy.io.json_files import MalformedError, decode_json
from dfs_deploy.io.kinds import given_instead
from dfs_deploy.io.pickles import ForbiddenNameError, OversizedPickleError, PickleRefusedError
from dfs_deploy.io.text import first_line, one_line

FORMAT = "dfs-deploy"
"""Name of our own format, in a file's values."""

OLDER_VERSIONS = (1, 2)
"""Versions of our own format that describe CIFAR ResNets only; version 2 added ``policy``."""

METADATA_KEY = "dfs_deploy"
"""Key in a ``.safetensors`` header for the plain values of our own format, as JSON."""

MAX_CHECKPOINT = 16 << 30
"""Most bytes of a checkpoint file."""

_EXPECTED = "a checkpoint (.pt, .pth, .pth.tar or .safetensors)"
_MAX_HEADER = 16 << 20
_LENGTH_BYTES = 8
_SAVE_AGAIN = "save only model.state_dict(), with torch.save"


@dataclass(frozen=True)
class FileContent:
    """Content of a checkpoint file.

    Attributes:
        path: the file.
        size: size of the file in bytes.
        content: tensors, plain values and dicts of them, as they were saved; only tensors for ``.safetensors``.
        values: plain values at the top level.
    """

    path: Path
    size: int
    content: Mapping[Any, Any]
    values: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint_file(path: Path) -> FileContent:
    """Reads dense tensors and plain values from a ``.safetensors`` file or a file of ``torch.save``.

    The first bytes of the file decide which of them it is.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or holds other sizes than it claims.
        UnsafeCheckpointError: loading it would run code; none of it was run.
    """
    try:
        size = check_file(path, MAX_CHECKPOINT)
        with path.open("rb") as stream:
            head = stream.read(_LENGTH_BYTES + 1)
            header = int.from_bytes(head[:_LENGTH_BYTES], "little")
            # Checked first, because the length may look like the magic number of any other format.
            if head.endswith(b"{") and len(head) > _LENGTH_BYTES and header <= size - _LENGTH_BYTES:
                return _read_safetensors(path, size, header)
            instead = given_instead(path, _EXPECTED, "checkpoint")
            if instead is not None:
                raise CheckpointError(instead)
            stream.seek(0)
            return _read_torch(path, stream, size)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give the path of {_EXPECTED}") from error
    except OSError as error:
        if path.is_dir():
            raise CheckpointError(_about_folder(path)) from error
        seen = first_line(error) if isinstance(error, UnfitFileError) else f"cannot be read ({first_line(error)})"
        raise CheckpointError(f"{path} {seen}; give the path of {_EXPECTED}") from error


def _about_folder(path: Path) -> str:
    """Message about a folder that was given as a checkpoint: a bundle, a training run, or any other."""
    source = source_of(path)
    if source is not None:
        file = one_line(source.file)
        return f"{path} is a bundle, expected {_EXPECTED}; give the checkpoint that it was made from, {file}"
    return given_instead(path, _EXPECTED, "checkpoint") or f"{path} is a folder, expected {_EXPECTED}; give such a file"


def _read_safetensors(path: Path, size: int, header: int) -> FileContent:
    import safetensors

    if header > _MAX_HEADER:
        raise CheckpointError(
            f"{path} has a header of {header:,} bytes, expected {_MAX_HEADER:,} at most; copy it again"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            names = list(archive.keys())
            if len(names) > MAX_TENSORS:
                raise CheckpointError(f"{path} holds more than {MAX_TENSORS:,} tensors; {_SAVE_AGAIN}")
            tensors = {name: archive.get_tensor(name) for name in names}
        values = decode_json(metadata.get(METADATA_KEY, "{}").encode(), dict[str, Any])
    except MalformedError as error:
        raise CheckpointError(f"{path} has malformed {METADATA_KEY} metadata ({error}); save it again") from error
    # The parser raises errors of many types for a damaged header; they have no common base class.
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is not a readable .safetensors file ({first_line(error)}); copy it again"
        ) from error
    for dropped, kept in metadata.items():
        # safetensors' save_model writes a shared tensor under one name, and maps its other names to it in the metadata.
        if kept in tensors and dropped not in tensors:
            tensors[dropped] = tensors[kept]
    return FileContent(path, size, tensors, values)


def _read_torch(path: Path, stream: BinaryIO, size: int) -> FileContent:
    try:
        check_archive(stream, size)
        stream.seek(0)
        content = torch.load(stream, map_location="cpu", weights_only=True)
    except ForbiddenNameError as error:
        raise UnsafeCheckpointError(
            f"{path} holds pickled objects ({error}), not only tensors and plain values; it was not loaded,"
            " because that would run code; save a state dict, or convert it to .safetensors if you trust it"
        ) from error
    except NotDenseError as error:
        raise CheckpointError(f"{path} holds {error}, expected dense tensors on the CPU; {_SAVE_AGAIN}") from error
    except OversizedPickleError as error:
        raise CheckpointError(f"{path} holds {error}, more than any supported network; {_SAVE_AGAIN}") from error
    except PickleRefusedError as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}); it may be truncated: copy it again, or {_SAVE_AGAIN}"
        ) from error
    # torch.load raises errors of many types for a file that is damaged in other ways.
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint; it may be truncated: copy it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict; save model.state_dict() in it"
        )
    return FileContent(path, size, content, {k: v for k, v in content.items() if not isinstance(v, Tensor)})
