"""Work in several threads: the same results and the same error for any number of them."""

from __future__ import annotations

import threading

import pytest

from dfs_deploy.system.threads import in_threads


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
def test_results_come_in_order(threads: int | None) -> None:
    assert in_threads([lambda i=i: i * i for i in range(20)], threads) == [i * i for i in range(20)]
    assert in_threads([], threads) == []


def test_tasks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=30)
    assert sorted(in_threads([meeting.wait] * 3, 3)) == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_of_several_errors_the_first_in_the_list_is_raised(threads: int) -> None:
    begun = threading.Barrier(threads, timeout=30)
    called = []

    def fail(number: int) -> None:
        called.append(number)
        if number < threads:
            begun.wait()
        raise ValueError(str(number))

    with pytest.raises(ValueError, match=r"^0$"):
        in_threads([lambda i=i: fail(i) for i in range(100)], threads)
    assert len(called) < 100, "no more are begun after an error"


def test_fewer_threads_do_the_work_if_no_more_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert in_threads([threading.get_ident] * 3, 4) == [threading.get_ident()] * 3


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    in_threads([lambda: None] * 50, 4)
    assert threading.active_count() == before
