from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench import clock
from dfs_deploy.bench.clock import Case, median_alone, round_for, summarize, time_interleaved


class FakeTime:
    """A clock that moves only while a case runs."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[str, int]] = []

    def perf_counter_ns(self) -> int:
        return self.now

    def case(self, name: str, nanoseconds: int) -> Case:
        def call(index: int) -> None:
            self.now += nanoseconds
            self.calls.append((name, index))

        return Case(name, call)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    time = FakeTime()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter_ns=time.perf_counter_ns))
    return time


def run(fake: FakeTime, **choices: Any) -> dict[str, list[int]]:
    cases = [fake.case("a", 1000), fake.case("b", 3000), fake.case("c", 2000)]
    defaults: dict[str, Any] = {"warm_up_s": 0.0, "min_s": 0.0, "min_iterations": 1, "burst": 2}
    return time_interleaved(cases, [10, 11, 12, 13, 14], **{**defaults, **choices})


# Percentiles


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=50))
def test_the_figures_of_a_case(nanoseconds: list[int]) -> None:
    timing = summarize(nanoseconds)
    ms = np.array(nanoseconds) / 1e6
    assert timing.p50 == pytest.approx(float(np.percentile(ms, 50)))
    assert timing.min == pytest.approx(ms.min())
    assert timing.max == pytest.approx(ms.max())
    assert timing.mean == pytest.approx(ms.mean())
    assert timing.cov == pytest.approx(ms.std() / ms.mean())
    assert timing.min <= timing.p50 <= timing.max


@pytest.mark.parametrize(("percent", "least"), [(90, 100), (95, 200), (99, 1000)])
def test_a_percentile_takes_ten_samples_beyond_it(percent: int, least: int) -> None:
    nanoseconds = [int(1e6 * (1 + i)) for i in range(least)]
    found = getattr(summarize(nanoseconds), f"p{percent}")
    assert found == pytest.approx(float(np.percentile(np.arange(1.0, least + 1), percent)))
    assert getattr(summarize(nanoseconds[1:]), f"p{percent}") is None


def test_no_sample_is_dropped() -> None:
    timing = summarize([1_000_000] * 99 + [1_000_000_000])
    assert timing.max == 1000.0
    assert timing.p50 == 1.0
    assert timing.mean == pytest.approx(10.99)


# Turns


@pytest.mark.parametrize(("burst", "turns"), [(1, 9), (2, 7), (5, 4)])
def test_every_case_runs_the_same_inputs_and_the_first_moves_on(fake: FakeTime, burst: int, turns: int) -> None:
    times = run(fake, burst=burst, min_iterations=burst * turns)
    size = 3 * burst
    turn_calls = [fake.calls[start : start + size] for start in range(0, len(fake.calls), size)]
    first, drawn = [], []
    for calls in turn_calls:
        assert len(calls) == size
        by_case = {name: [index for n, index in calls if n == name] for name in "abc"}
        assert by_case["a"] == by_case["b"] == by_case["c"]
        names = [name for name, _ in calls]
        assert all(names[i : i + burst] == [names[i]] * burst for i in range(0, size, burst)), "calls in a row"
        first.append(names[0])
        drawn += by_case["a"]
    measured = first[-turns:]
    assert measured == ["abc"[turn % 3] for turn in range(turns)]
    assert drawn == [10 + i % 5 for i in range(len(drawn))], "drawn in order, again from the start"
    assert times == {"a": [1000] * burst * turns, "b": [3000] * burst * turns, "c": [2000] * burst * turns}


@pytest.mark.parametrize("least", [1, 10, 33])
def test_at_least_so_many_calls_of_each_case(fake: FakeTime, least: int) -> None:
    times = run(fake, min_iterations=least)
    counts = {len(taken) for taken in times.values()}
    assert len(counts) == 1
    assert least <= counts.pop() <= least + 1


def test_at_least_so_long(fake: FakeTime) -> None:
    times = run(fake, min_s=1e-3)
    total = sum(map(sum, times.values()))
    assert 1_000_000 <= total <= 1_000_000 + 12_000


def test_warming_up_is_not_measured(fake: FakeTime) -> None:
    times = run(fake, warm_up_s=1e-3, min_iterations=10)
    measured = sum(map(sum, times.values()))
    assert fake.now - measured >= 1_000_000
    fake.now, fake.calls = 0, []
    times = run(fake, min_iterations=10)
    assert fake.now > sum(map(sum, times.values())), "some turns are not measured though no time was asked for"


def test_progress_rises_to_the_end(fake: FakeTime) -> None:
    shares: list[float] = []
    run(fake, min_iterations=200, progress=lambda stage, share: shares.append(share))
    assert shares == sorted(shares)
    assert 0.0 <= shares[0] < 0.5 < shares[-1]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_while_timing_and_is_left_as_it_was(fake: FakeTime, enabled: bool) -> None:
    seen: list[bool] = []

    def call(index: int) -> None:
        fake.now += 1
        seen.append(gc.isenabled())
        if len(seen) > 20:
            raise OSError("failed")

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(OSError, match="failed"):
            time_interleaved([Case("a", call)], [0], warm_up_s=0.0, min_s=1.0, min_iterations=100)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert not any(seen)


@given(st.floats(1e-4, 1e5))
def test_a_turn_is_long_enough_to_settle_and_short_enough_to_interleave(call_ms: float) -> None:
    each = round_for(call_ms)
    assert 4 <= each.measured <= 128
    assert 1 <= each.unmeasured <= 64
    if 0.3 <= call_ms <= 5.0:
        assert 20 <= each.measured * call_ms <= 45
        assert 10 <= each.unmeasured * call_ms <= 23


def test_the_first_calls_of_a_turn_are_run_and_not_measured(fake: FakeTime) -> None:
    times = run(fake, burst=3, unmeasured=2, min_iterations=6)
    assert times == {"a": [1000] * 6, "b": [3000] * 6, "c": [2000] * 6}
    turn_calls = [fake.calls[start : start + 15] for start in range(0, len(fake.calls), 15)]
    for turn, calls in enumerate(turn_calls):
        drawn = [10 + (3 * turn + i) % 5 for i in range(-1, -3, -1)] + [10 + (3 * turn + i) % 5 for i in range(3)]
        assert [index for name, index in calls if name == "a"] == drawn


# Alone


def test_the_median_of_a_call_by_itself(fake: FakeTime) -> None:
    durations = iter([7_000_000] * 5 + [1_000_000, 2_000_000, 9_000_000] * 40)

    def call() -> None:
        fake.now += next(durations)

    assert median_alone(call, repeats=99) == 2.0
