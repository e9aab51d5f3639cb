"""Files of ``torch.save``, checked before ``torch.load`` trusts them.

There are two kinds: a ZIP archive with one member for the pickle and one per storage, and, before PyTorch 1.6, pickles
followed by the storages. The sizes that a file claims are compared with what it holds before anything is loaded.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from typing import BinaryIO

from dfs_deploy.checkpoints.pickled import PickleFollower
from dfs_deploy.io.files import BoundedReads, OversizedReadError
from dfs_deploy.io.pickles import MalformedPickleError, OversizedPickleError
from dfs_deploy.io.text import one_line

MAX_PICKLE = 8 << 20
"""Most bytes of the pickles of a checkpoint, and of its list of members."""

_ZIP_MARK = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LENGTH_BYTES = 8
"""Bytes of the number of values, before each storage in a file that is no ZIP archive."""


def check_archive(stream: BinaryIO, size: int) -> None:
    """Checks that a file of ``torch.save``, of ``size`` bytes, holds what it claims. Nothing in it is executed.

    Raises:
        PickleRefusedError: sizes are wrong, or there is something other than dense tensors and plain values; the
            subclass says which.
    """
    if stream.read(len(_ZIP_MARK)) == _ZIP_MARK:
        _check_zip(stream, size)
    else:
        stream.seek(0)
        _check_pickles(stream, size)


def _check_zip(stream: BinaryIO, size: int) -> None:
    try:
        with zipfile.ZipFile(BoundedReads(stream, MAX_PICKLE)) as archive:
            members = _check_members(archive, size)
            pickled = archive.read(members["data.pkl"])
    except OversizedReadError as error:
        raise OversizedPickleError(str(error)) from error
    except (zipfile.BadZipFile, KeyError, NotImplementedError, ValueError, OverflowError, EOFError) as error:
        raise MalformedPickleError("a damaged ZIP archive") from error
    content = io.BytesIO(pickled)
    follower = PickleFollower(content)
    follower.load()
    if content.read(1):
        raise MalformedPickleError("a pickle with data after its end")
    for storage in follower.storages.values():
        member = members.get(f"data/{storage.key}")
        if member is None or member.file_size != storage.size:
            held = "none" if member is None else f"{member.file_size} bytes"
            raise MalformedPickleError(f"a storage {storage.key} of {storage.size} bytes, the file holds {held}")


def _check_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by name, without their common folder.

    Archives of any other form are refused: two readers could see different content in them.
    """
    members = archive.infolist()
    folder = members[0].filename.partition("/")[0] + "/" if members else ""
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise MalformedPickleError(f"a compressed member {member.filename}, which torch.save does not write")
        if not member.filename.startswith(folder) or member.flag_bits & 1:
            raise MalformedPickleError(f"a member {member.filename} that torch.save does not write")
    named = {member.filename.removeprefix(folder): member for member in members}
    if len(named) != len(members):
        raise MalformedPickleError("two members of one name")
    if "constants.pkl" in named:
        raise MalformedPickleError("a TorchScript program")
    if "data.pkl" not in named:
        first = one_line(members[0].filename, 80) if members else "nothing"
        raise MalformedPickleError(f"a ZIP archive without a pickle ({first})")
    if named["data.pkl"].file_size > MAX_PICKLE:
        raise OversizedPickleError(f"{named['data.pkl'].file_size:,} bytes of pickled values")
    ends = sorted((member.header_offset, member.header_offset + member.file_size) for member in members)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(ends)) or ends[0][0] != 0 or ends[-1][1] > size:
        raise MalformedPickleError("members that overlap")
    if archive.comment:
        raise MalformedPickleError("a ZIP archive with a comment")
    return named


def _check_pickles(stream: BinaryIO, size: int) -> None:
    head = io.BytesIO(stream.read(MAX_PICKLE))
    follower = PickleFollower(head)
    if follower.load() != _MAGIC or follower.load() != _VERSION:
        raise MalformedPickleError("a pickle that torch.save did not write")
    system = follower.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise MalformedPickleError("values from a big-endian machine")
    follower.load()
    keys = follower.load()
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or sorted(keys) != sorted(follower.storages):
        raise MalformedPickleError("storages that do not belong to its tensors")
    position = head.tell()
    for key in keys:
        storage = follower.storages[key]
        stream.seek(position)
        items = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        position += _LENGTH_BYTES + storage.size
        if items != storage.items or position > size:
            raise MalformedPickleError(f"a storage {key} of {storage.size} bytes that is missing")
