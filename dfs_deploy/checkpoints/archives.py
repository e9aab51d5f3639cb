"""Files that ``torch.save`` writes, looked through before ``torch.load`` believes them.

There are two kinds: a ZIP archive with a member for the pickle and one for each storage, and, before PyTorch 1.6,
pickles with the storages behind them. What a file says of sizes is compared with what it holds; only then is it loaded.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from typing import BinaryIO

from dfs_deploy.checkpoints.pickled import MalformedPickleError, OversizedPickleError, PickleFollower
from dfs_deploy.io.files import BoundedReads, OversizedReadError
from dfs_deploy.io.text import one_line

MAX_PICKLE = 8 << 20
"""Most bytes of a checkpoint's pickles, and of the list of its members."""

_ZIP_MARK = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LENGTH_BYTES = 8
"""Bytes before a storage in a file without a ZIP archive: how many values it has."""


def check_archive(stream: BinaryIO, size: int) -> None:
    """Checks that a file of ``torch.save`` holds what it says it holds. Nothing in it is run.

    Args:
        stream: the file, at its beginning.
        size: its bytes.

    Raises:
        PickleRefusedError: it does not, or holds something else than dense tensors and plain values; the subclass says
            which.
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
    follower = PickleFollower()
    content = io.BytesIO(pickled)
    follower.follow(content)
    if content.read(1):
        raise MalformedPickleError("a pickle with more behind it")
    for storage in follower.storages.values():
        member = members.get(f"data/{storage.key}")
        if member is None or member.file_size != storage.size:
            held = "none" if member is None else f"{member.file_size} bytes"
            raise MalformedPickleError(f"a storage {storage.key} of {storage.size} bytes, of which it holds {held}")


def _check_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by their names in the folder that all lie in.

    Two readers could take an archive of other forms for two different ones.
    """
    members = archive.infolist()
    folder = members[0].filename.partition("/")[0] + "/" if members else ""
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise MalformedPickleError(f"a compressed member {member.filename}, where torch.save compresses none")
        if not member.filename.startswith(folder) or member.flag_bits & 1:
            raise MalformedPickleError(f"a member {member.filename} that torch.save does not write")
    named = {member.filename.removeprefix(folder): member for member in members}
    if len(named) != len(members):
        raise MalformedPickleError("two members of one name")
    if "constants.pkl" in named:
        raise MalformedPickleError("a TorchScript program")
    if "data.pkl" not in named:
        first = one_line(members[0].filename, 80) if members else "nothing"
        raise MalformedPickleError(f"a ZIP archive of other things ({first})")
    if named["data.pkl"].file_size > MAX_PICKLE:
        raise OversizedPickleError(f"{named['data.pkl'].file_size:,} bytes of pickled values")
    ends = sorted((member.header_offset, member.header_offset + member.file_size) for member in members)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(ends)) or ends[0][0] != 0 or ends[-1][1] > size:
        raise MalformedPickleError("members that lie over each other")
    if archive.comment:
        raise MalformedPickleError("a ZIP archive with a comment")
    return named


def _check_pickles(stream: BinaryIO, size: int) -> None:
    head = io.BytesIO(stream.read(MAX_PICKLE))
    follower = PickleFollower()
    if follower.follow(head) != _MAGIC or follower.follow(head) != _VERSION:
        raise MalformedPickleError("a pickle that torch.save did not write")
    system = follower.follow(head)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise MalformedPickleError("values of a big-endian machine")
    follower.follow(head)
    keys = follower.follow(head)
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or sorted(keys) != sorted(follower.storages):
        raise MalformedPickleError("storages that are not those of its tensors")
    position = head.tell()
    for key in keys:
        storage = follower.storages[key]
        stream.seek(position)
        items = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        position += _LENGTH_BYTES + storage.size
        if items != storage.items or position > size:
            raise MalformedPickleError(f"a storage {key} of {storage.size} bytes that is not there")
