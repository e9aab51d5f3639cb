"""JSON that somebody else wrote: of bounded size, of the expected types, or one named error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from dfs_deploy.io.files import read_file
from dfs_deploy.io.kinds import kind_of_content
from dfs_deploy.io.text import first_line

MAX_JSON = 32 << 20
"""Most bytes of a JSON file: a manifest of a thousand blocks with all its engines and ranges takes about 3 MB."""

MAX_LOG = 1 << 30
"""Most bytes of a log with a JSON object on each line: one of 200,000 steps has 50 MB."""

LONGEST_NAME = 256
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
"""Name of a file, a data set, an option, a machine or a version."""

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""Hexadecimal SHA-256."""

Share = Annotated[float, Meta(ge=0, le=1)]
Percentage = Annotated[float, Meta(ge=0, le=100)]

Measured = Annotated[float, Meta(ge=1e-9, le=1e9)]
"""Time in milliseconds or ratio of two: so bounded that no quotient of them overflows."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that is malformed, of other types, not in UTF-8, or nested without end."""

_T = TypeVar("_T")


class MalformedError(ValueError):
    """JSON that is malformed, or of other types than expected; its text is one bounded line."""


def decode_json(
    content: bytes, type: type[_T], *, strict: bool = True, dec_hook: Callable[[type, Any], Any] | None = None
) -> _T:
    """Decodes JSON to a type.

    Args:
        content: UTF-8 text.
        type: what is expected: a msgspec ``Struct`` or any other type that it knows.
        strict: whether numbers in quotes and the like are refused.
        dec_hook: reads values of types that msgspec does not know; a ValueError of it is one of the JSON's.

    Raises:
        MalformedError: it is no JSON, or of other types; it names the kind of a file that its first bytes tell.
    """
    try:
        return msgspec.json.decode(content, type=type, strict=strict, dec_hook=dec_hook)
    except UNREADABLE as error:
        kind = kind_of_content(content, len(content))
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
    """Reads a JSON file; see :func:`decode_json` and :func:`dfs_deploy.io.files.read_file`.

    Raises:
        MalformedError: it is no JSON, or of other types.
        OSError: it is not there, no regular file, too large, or cannot be read.
    """
    return decode_json(read_file(path, limit, follow=follow), type, dec_hook=dec_hook)
