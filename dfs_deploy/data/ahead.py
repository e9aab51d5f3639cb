"""Work that threads do ahead of whoever needs its results: images are decoded while others are computed on."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dfs_deploy.system.cpu import cpu_limits

_T = TypeVar("_T")
_R = TypeVar("_R")

MAX_WORKERS = 16
"""Most threads that decode; Pillow's decoders and its resizing let go of Python's lock."""


def workers() -> int:
    """Threads that decode: as many as this machine keeps busy, but no more than ``MAX_WORKERS``."""
    return min(cpu_limits().cores, MAX_WORKERS)


def done_ahead(function: Callable[[_T], _R], items: Iterable[_T], ahead: int) -> Generator[_R, None, None]:
    """Results of a function in the order of its items, computed by threads before they are asked for.

    Args:
        function: called in any thread; an exception is raised where its result would be.
        items: taken in the caller's thread, as far ahead as results are; may be endless.
        ahead: most results that exist and were not asked for yet, at least 1.

    Yields:
        One result per item.
    """
    waiting: deque[Future[_R]] = deque()
    rest = iter(items)
    with ThreadPoolExecutor(workers(), thread_name_prefix="dfs-decode") as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, ahead))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
                del result  # the caller's now
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
