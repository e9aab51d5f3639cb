from __future__ import annotations

import pytest
from msgspec.structs import replace

from dfs_deploy.bench.clock import case_result
from dfs_deploy.bench.paths import forced_paths
from dfs_deploy.bench.result import CaseResult
from dfs_deploy.options import Options
from tests.bench.made import rounds_of

OPTIONS = Options.parse("skip,8")
ROUNDS = {
    "dfs-forced-50-int8": rounds_of(1.0, seed=1),
    "trace-50-int8": rounds_of(0.8, seed=2),
    "static-int8": rounds_of(2.0, seed=3),
}


def cases(gates: bool = True) -> list[CaseResult]:
    """Engines of 0.7 ms and gates of 0.02 ms in a call of 1 ms."""
    made = [case_result(name, 1, rounds) for name, rounds in ROUNDS.items()]
    if gates:
        made[0] = replace(made[0], engine_ms=0.7, gate_us=2.0, gate_share=0.02 / made[0].latency_ms.p50)
    return made


def test_dispatch_is_set_against_trace_and_static() -> None:
    (path,) = forced_paths(OPTIONS, cases(), ROUNDS, decided=11, skippable=11)
    assert (path.share, path.blocks, path.option, path.precision) == (50, 5, "8", "int8")
    assert path.over_trace is not None
    assert path.over_static is not None
    assert (path.over_trace.over, path.over_static.over) == ("trace-50-int8", "static-int8")
    assert path.over_trace.p50.value == pytest.approx(1.25, rel=0.01)
    assert path.over_static.p50.value == pytest.approx(0.5, rel=0.01)
    assert path.static_ms == pytest.approx(2.0, rel=0.01)


def test_costs_are_shared_out_over_the_gated_blocks() -> None:
    (path,) = forced_paths(OPTIONS, cases(), ROUNDS, decided=10, skippable=4)
    assert path.blocks == 2, "half of those that may be skipped"
    assert path.gate_us == pytest.approx(2.0)
    assert path.dispatch_us == pytest.approx(100 * (path.dispatch_ms - 0.7 - 0.02))


@pytest.mark.parametrize(("gates", "blocks"), [(False, 10), (True, 0)])
def test_no_costs_without_engines_timed_or_blocks(gates: bool, blocks: int) -> None:
    (path,) = forced_paths(OPTIONS, cases(gates), ROUNDS, blocks, blocks)
    assert (path.gate_us, path.dispatch_us) == (None, None)
    assert path.over_trace is not None


def test_without_a_static_engine_of_the_precision_the_trace_remains() -> None:
    (path,) = forced_paths(OPTIONS, cases()[:2], ROUNDS, decided=10, skippable=10)
    assert (path.static_ms, path.over_static) == (None, None)
    assert path.over_trace is not None


def test_nothing_was_forced() -> None:
    assert forced_paths(OPTIONS, cases()[2:], ROUNDS, decided=10, skippable=10) == ()
