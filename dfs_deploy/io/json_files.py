"""JSON files: bounded in size, strict in types, and versioned if the package wrote them.

``VersionedFormat`` is the one reader and writer of files with a version: a manifest, a latency table, a saved
bench or verification, an engine choice, a training job. A module declares its format::

    FORMAT = VersionedFormat("latency table", LatencyTable, 2, "write one with bench --save-costs", error=DataError,
                             mark=("kind", "dfs-deploy latency table"), older={1: (LatencyTable1, from_version_1)})

and calls ``FORMAT.read(path)`` and ``FORMAT.write(path, value)``. ``decode_json`` and ``read_json`` are for
JSON without a version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from dfs_deploy.errors import ArtefactError, DfsDeployError, UsageError
from dfs_deploy.io.files import read_file, write_whole
from dfs_deploy.io.kinds import kind_of_content
from dfs_deploy.io.text import first_line, one_line

MAX_JSON = 32 << 20
"""Most bytes of a JSON file; the manifest of a thousand blocks, with engines and ranges, takes about 3 MB."""

MAX_LOG = 1 << 30
"""Most bytes of a log with one JSON object per line; a log of 200,000 steps has 50 MB."""

LONGEST_NAME = 256
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
"""Name of a file, a data set, an option, a machine or a version."""

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""Hexadecimal SHA-256."""

Share = Annotated[float, Meta(ge=0, le=1)]
Percentage = Annotated[float, Meta(ge=0, le=100)]

Measured = Annotated[float, Meta(ge=1e-9, le=1e9)]
"""Time in milliseconds, or ratio of two times; bounded so that no quotient of two overflows."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Errors of msgspec for JSON that is malformed, of other types, not UTF-8, or nested too deeply."""

_T = TypeVar("_T")
_V = TypeVar("_V")


class MalformedError(ValueError):
    """JSON that is malformed, or has other types than expected; the text is one bounded line."""


def decode_json(
    content: bytes, type: type[_T], *, strict: bool = True, dec_hook: Callable[[type, Any], Any] | None = None
) -> _T:
    """Decodes JSON to a msgspec ``Struct`` or another type that msgspec supports; see ``msgspec.json.decode``.

    Raises:
        MalformedError: the content is no JSON, or has other types; the text names the kind of file, if it is known.
    """
    try:
        return msgspec.json.decode(content, type=type, strict=strict, dec_hook=dec_hook)
    except UNREADABLE as error:
        kind = kind_of_content(content)
        seen = first_line(error) if kind is None or kind.role == "record" else f"it is {kind.name}"
        raise MalformedError(seen) from error


def read_json(
    path: Path,
    type: type[_T],
    *,
    limit: int = MAX_JSON,
    follow: bool = True,
    dec_hook: Callable[[type, Any], Any] | None = None,
) -> _T:
    """Reads a JSON file; see ``decode_json`` and ``read_file``.

    Raises:
        MalformedError: the content is no JSON, or has other types.
        OSError: the file does not exist, is no regular file, is too large, or cannot be read.
    """
    return decode_json(read_file(path, limit, follow=follow), type, dec_hook=dec_hook)


@dataclass(frozen=True)
class VersionedFormat(Generic[_T]):
    """A JSON file format with a version in it.

    Attributes:
        name: name of such a file in messages, such as ``latency table``.
        newest: type of a file of the newest version, a msgspec ``Struct``, which decides whether unknown keys are
            refused or ignored.
        version: the newest version, which is what ``write`` writes.
        remedy: instruction for a file that cannot be used, as the end of a message.
        error: error for a file that cannot be used.
        version_error: error for a file of a version that is not read; ``None`` for ``error``.
        version_key: key that holds the version.
        mark: key and value that identify the format; ``None`` if it has no such key.
        older: for each older version that is read, its type and what makes the newest type of it.
        dec_hook: reads values of types that msgspec does not know; see ``decode_json``.
        enc_hook: makes plain values of such types.
    """

    name: str
    newest: type[_T]
    version: int
    remedy: str
    error: type[DfsDeployError] = ArtefactError
    version_error: type[DfsDeployError] | None = None
    version_key: str = "schema_version"
    mark: tuple[str, str] | None = None
    older: Mapping[int, tuple[type[Any], Callable[[Any], _T]]] = field(default_factory=dict)
    dec_hook: Callable[[Any, Any], Any] | None = None
    enc_hook: Callable[[Any], Any] | None = None

    def read(self, path: Path, *, limit: int = MAX_JSON, follow: bool = True) -> _T:
        """Reads a file of any version that is known, strictly; see ``read_file``.

        Raises:
            DfsDeployError: as ``error`` and ``version_error`` say: the file cannot be read, is malformed, of
                another format, or of a version that is not read. One line says which.
        """
        try:
            content = read_file(path, limit, follow=follow)
        except OSError as error:
            raise self.error(f"{path} cannot be read ({first_line(error)}); {self.remedy}") from error
        return self.decode(content, path)

    def decode(self, content: bytes, path: Path) -> _T:
        """Reads the content of a file; see ``read``. The path is for messages."""
        try:
            keys = decode_json(content, dict[str, msgspec.Raw])
            seen = None if self.mark is None else self._value(keys, self.mark[0], str)
            version = self._value(keys, self.version_key, int)
        except MalformedError as error:
            raise self._malformed(path, error) from error
        if self.mark is not None and seen != self.mark[1]:
            raise self.error(f"{path} holds {one_line(str(seen), 80)!r}, expected {self.mark[1]!r}; {self.remedy}")
        if version != self.version and version not in self.older:
            raise self._of_another_version(path, version)
        try:
            if version == self.version:
                return decode_json(content, self.newest, dec_hook=self.dec_hook)
            older, newer = self.older[version]
            return newer(decode_json(content, older, dec_hook=self.dec_hook))
        except (MalformedError, UsageError) as error:
            raise self._malformed(path, error) from error

    def write(self, path: Path, value: _T) -> None:
        """Writes a file whole or not at all."""
        write_whole(path, self.encode(value))

    def encode(self, value: _T) -> bytes:
        """Content of a file of the newest version, indented for people."""
        return msgspec.json.format(msgspec.json.encode(value, enc_hook=self.enc_hook), indent=1) + b"\n"

    def _value(self, keys: Mapping[str, msgspec.Raw], key: str, kind: type[_V]) -> _V:
        if key not in keys:
            raise MalformedError(f"no key {key!r}")
        return decode_json(bytes(keys[key]), kind)

    def _malformed(self, path: Path, error: Exception) -> DfsDeployError:
        return self.error(f"{path} is no {self.name} ({first_line(error)}); {self.remedy}")

    def _of_another_version(self, path: Path, version: int) -> DfsDeployError:
        known = sorted({*self.older, self.version})
        expected = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
        remedy = "update dfs-deploy" if version > self.version else self.remedy
        return (self.version_error or self.error)(f"{path} has schema version {version}, expected {expected}; {remedy}")
