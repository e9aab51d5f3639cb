"""What several tests share and what needs no PyTorch."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class MakesFolder:
    """A pickle of this makes a folder when it is loaded the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@contextmanager
def refuses(error: type[Exception], *words: str) -> Iterator[None]:
    """Expects exactly this error, with a message of one line in which every word stands."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message
    assert "\n" not in message
    for word in words:
        assert word in message, message


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Expects that Python's own allocations stay below so many bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
