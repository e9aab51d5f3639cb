from __future__ import annotations

import itertools
import threading
import time

import pytest

from dfs_deploy.data import ahead
from dfs_deploy.data.ahead import done_ahead


@pytest.fixture(params=[1, 4])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(ahead, "workers", lambda: request.param)
    count: int = request.param
    return count


@pytest.mark.parametrize("most", [1, 3, 100])
def test_results_come_in_order_and_no_more_than_asked_for_wait(workers: int, most: int) -> None:
    done: list[int] = []

    def slow(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        done.append(item)
        return item * item

    for count, result in enumerate(done_ahead(slow, range(20), most), 1):
        assert result == (count - 1) ** 2
        assert len(done) <= count + most
    assert sorted(done) == list(range(20))


def test_items_without_end_are_taken_as_they_are_needed(workers: int) -> None:
    taken: list[int] = []
    items = (taken.append(number) or number for number in itertools.count())  # type: ignore[func-returns-value]
    results = done_ahead(lambda item: item + 1, items, 5)
    assert list(itertools.islice(results, 10)) == list(range(1, 11))
    results.close()
    assert len(taken) <= 15


def test_an_error_is_raised_where_its_result_would_be(workers: int) -> None:
    def inverse(item: int) -> float:
        return 1.0 / item

    results = done_ahead(inverse, [1, 2, 0, 4], 4)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_thread_outlives_its_work(workers: int) -> None:
    before = threading.active_count()
    results = done_ahead(lambda item: time.sleep(0.001), range(100), 50)
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before
