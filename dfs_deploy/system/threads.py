"""Work in several threads, whose result and error do not depend on their number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from dfs_deploy.system.cpu import cpu_limits

MOST_THREADS = 4
"""Most threads that work on one list; each holds the memory of what it works on."""

_T = TypeVar("_T")


def in_threads(tasks: Sequence[Callable[[], _T]], threads: int | None = None) -> list[_T]:
    """Calls tasks that release Python's lock while they work, and returns their results in order.

    Args:
        tasks: the tasks, each called once, in order of their beginning. After an error no more are begun.
        threads: threads to use, the calling one included; ``None`` for one per core that this process may use, at most
            ``MOST_THREADS``. If so many cannot be started, fewer do the work.

    Raises:
        BaseException: what a task raised; of several, that of the first one in the list.
    """
    wanted = min(cpu_limits().cores, MOST_THREADS) if threads is None else threads
    left, lock = iter(range(len(tasks))), threading.Lock()
    results: dict[int, _T] = {}
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while not errors:
            with lock:
                number = next(left, None)
            if number is None:
                return
            try:
                results[number] = tasks[number]()
            except BaseException as error:
                errors[number] = error

    helpers: list[threading.Thread] = []
    for _ in range(min(wanted, len(tasks)) - 1):
        helper = threading.Thread(target=work, daemon=True)
        try:
            helper.start()
        except RuntimeError:  # a limit on threads or memory; those that run are enough
            break
        helpers.append(helper)
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(tasks))]
