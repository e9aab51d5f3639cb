from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.costs import LatencyTable, OptionCost, load_costs, save_costs
from dfs_deploy.errors import DataError
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from tests.checks import refuses

ARCHITECTURE = cifar_resnet((2, 1), (4, 8), 10, (3, 8, 8))
OPTIONS = Options.parse("skip,8,full")
TIMES = {
    (1, "skip"): 0.0,
    (1, "8"): 10.0,
    (1, "full"): 30.0,
    (2, "skip"): 5.0,
    (2, "8"): 20.0,
    (2, "full"): 50.0,
}


def table(times: dict[tuple[int, str], float] = TIMES, gate_us: float = 0.0, **changes: Any) -> LatencyTable:
    values: dict[str, Any] = {
        "bundle": "0" * 64,
        "machine": "a machine",
        "runtime": "onnxruntime 1.20",
        "threads": 1,
        "image_shape": (3, 8, 8),
        "block_shapes": ((4, 8, 8), (4, 8, 8), (8, 4, 4)),
        "gate_us": gate_us,
        "entries": [
            OptionCost(block=block, option=option, engine_us=time, precision="fp32" if time else None)
            for (block, option), time in times.items()
        ],
    }
    return LatencyTable(**{**values, **changes})


def test_costs_are_times_over_the_mean_of_the_dearest_path() -> None:
    expected = np.array([[0.0, 10.0, 30.0], [5.0, 20.0, 50.0]]) / 40.0
    np.testing.assert_allclose(table().costs(ARCHITECTURE, OPTIONS), expected)


def test_the_gate_is_paid_at_every_block_whatever_it_decides() -> None:
    expected = (np.array([[0.0, 10.0, 30.0], [5.0, 20.0, 50.0]]) + 10.0) / 50.0
    np.testing.assert_allclose(table(gate_us=10.0).costs(ARCHITECTURE, OPTIONS), expected)


def test_a_static_policy_pays_no_gate_and_is_a_share_of_the_same_whole() -> None:
    costs = table(gate_us=10.0).costs(ARCHITECTURE, OPTIONS, gated=False)
    np.testing.assert_allclose(costs, np.array([[0.0, 10.0, 30.0], [5.0, 20.0, 50.0]]) / 50.0)


@given(st.lists(st.floats(0.1, 1e6), min_size=6, max_size=6), st.floats(0.0, 1e6))
def test_the_dearest_path_is_one_hundred_percent(times: list[float], gate_us: float) -> None:
    costs = table(dict(zip(TIMES, times, strict=True)), gate_us).costs(ARCHITECTURE, OPTIONS)
    assert costs.min() >= 0.0
    assert costs.max(1).mean() == pytest.approx(1.0)


def test_columns_follow_the_options_and_some_may_be_left_out() -> None:
    costs = table().costs(ARCHITECTURE, OPTIONS)
    np.testing.assert_allclose(table().costs(ARCHITECTURE, Options.parse("full,skip")), costs[:, [2, 0]])
    # Without full precision, all blocks in 8 bits are the whole: 10 and 20 microseconds.
    whole = np.array([[0.0, 10.0], [5.0, 20.0]]) / 15.0
    np.testing.assert_allclose(table().costs(ARCHITECTURE, Options.parse("skip,8")), whole)


def test_a_table_of_another_network_is_refused() -> None:
    for other in (
        cifar_resnet((1, 2), (4, 8), 10, (3, 8, 8)),
        cifar_resnet((2, 1), (4, 16), 10, (3, 8, 8)),
        cifar_resnet((2, 1), (4, 8), 10, (3, 16, 16)),
    ):
        with refuses(DataError, "expected", "save-costs"):
            table().costs(other, OPTIONS)


def test_a_table_without_an_option_that_is_asked_for_is_refused() -> None:
    with refuses(DataError, "option 16", "skip, 8, full"):
        table().costs(ARCHITECTURE, Options.parse("skip,16"))
    without = {key: value for key, value in TIMES.items() if key != (2, "full")}
    with refuses(DataError, "option full"):
        table(without).costs(ARCHITECTURE, Options.parse("skip,full"))
    assert table(without).costs(ARCHITECTURE, Options.parse("skip,8")).max(1).mean() == pytest.approx(1.0)


def test_blocks_without_some_options_have_no_entry_for_them() -> None:
    blocks = list(ARCHITECTURE.blocks)
    blocks[1] = msgspec.structs.replace(blocks[1], options=("skip", "8"))
    network = msgspec.structs.replace(ARCHITECTURE, blocks=tuple(blocks))
    times = {key: value for key, value in TIMES.items() if key != (1, "full")}
    # Block 1 runs at most in 8 bits, so all that can be computed takes 10 and 50 microseconds.
    expected = np.array([[0.0, 10.0, 0.0], [5.0, 20.0, 50.0]]) / 30.0
    np.testing.assert_allclose(table(times).costs(network, OPTIONS), expected)
    with refuses(DataError, "option 8"):
        table({key: value for key, value in times.items() if key != (1, "8")}).costs(network, OPTIONS)


def test_a_fixed_block_costs_nothing_and_pays_no_gate() -> None:
    blocks = list(ARCHITECTURE.blocks)
    blocks[1] = msgspec.structs.replace(blocks[1], options=("8",))
    network = msgspec.structs.replace(ARCHITECTURE, blocks=tuple(blocks))
    times = {key: value for key, value in TIMES.items() if key[0] == 2}
    expected = np.array([[0.0, 0.0, 0.0], [15.0, 30.0, 60.0]]) / 60.0
    np.testing.assert_allclose(table({**times, (1, "8"): 7.0}, gate_us=10.0).costs(network, OPTIONS), expected)
    blocks[2] = msgspec.structs.replace(blocks[2], options=("full",))
    nothing = msgspec.structs.replace(ARCHITECTURE, blocks=tuple(blocks))
    assert not table().costs(nothing, OPTIONS).any()


@given(
    st.lists(st.floats(0.1, 1e3), min_size=6, max_size=6),
    st.floats(0.0, 1e3),
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=8),
)
def test_predicted_time_and_costs_say_the_same(times: list[float], gate_us: float, rows: list[list[int]]) -> None:
    """A path's cost is its predicted time as a share of the dearest path's, and mean shares predict the mean."""
    measured, path = table(dict(zip(TIMES, times, strict=True)), gate_us), np.array(rows)
    costs = measured.costs(ARCHITECTURE, OPTIONS)
    predicted = measured.predict_us(path, OPTIONS)
    whole = measured.dearest_us(OPTIONS)
    assert measured.predict_us(costs.argmax(1)[None], OPTIONS) == pytest.approx([whole])
    np.testing.assert_allclose(predicted / whole, costs[[0, 1], path].mean(1), rtol=1e-9)
    shares = [np.bincount(column, minlength=3) / len(path) for column in path.T]
    assert measured.predict_mean_us(shares, OPTIONS) == pytest.approx(predicted.mean())
    alone = measured.costs(ARCHITECTURE, OPTIONS, gated=False)[[0, 1], path].mean(1)
    np.testing.assert_allclose(measured.predict_us(path, OPTIONS, gated=False) / whole, alone, rtol=1e-9)
    assert measured.predict_mean_us(shares, OPTIONS, gated=False) == pytest.approx(alone.mean() * whole)


def test_a_fixed_block_adds_no_predicted_time() -> None:
    times = {key: value for key, value in TIMES.items() if key[0] == 2}
    measured = table({**times, (1, "8"): 7.0}, gate_us=10.0)
    np.testing.assert_allclose(measured.predict_us(np.array([[1, 0], [1, 2]]), OPTIONS), [15.0, 60.0])


def test_what_a_table_cannot_predict_is_refused() -> None:
    with refuses(DataError, "shape (1, 3)", "(N, 2)"):
        table().predict_us(np.zeros((1, 3), np.int64), OPTIONS)
    with refuses(DataError, "shape (2, 2)", "(2, 3)"):
        table().predict_mean_us(np.zeros((2, 2)), OPTIONS)
    more = Options.parse("skip,8,16,full")
    assert table().predict_us(np.array([[1, 3]]), more) == pytest.approx([60.0])
    with refuses(DataError, "without the time of an option", "skip, 8, full"):
        table().predict_us(np.array([[1, 2]]), more)
    with refuses(DataError, "without the time of an option"):
        table().predict_mean_us([[0.5, 0.5, 0.0, 0.0], [0.0, 0.9, 0.1, 0.0]], more)


def test_a_table_that_says_nothing_is_refused() -> None:
    with refuses(DataError, "no time"):
        table(dict.fromkeys(TIMES, 0.0)).costs(ARCHITECTURE, OPTIONS)


def test_a_round_trip(tmp_path: Path) -> None:
    save_costs(tmp_path / "latency.json", table(gate_us=1.5))
    assert load_costs(tmp_path / "latency.json") == table(gate_us=1.5)


def test_a_table_of_version_1_says_groups_and_widths(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    save_costs(file, table())
    values = json.loads(file.read_text())
    del values["block_shapes"]
    for groups, loads in ([2, 1], True), ([0, 1], False), ([2], False):
        file.write_text(json.dumps({**values, "schema_version": 1, "groups": groups, "widths": [4, 8]}))
        if loads:
            assert load_costs(file) == table()
        else:
            with refuses(DataError, "latency.json", "save-costs"):
                load_costs(file)


def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    save_costs(tmp_path / "twice.json", table(entries=[*table().entries, table().entries[0]]))
    with refuses(DataError, "twice"):
        load_costs(tmp_path / "twice.json")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something else"},
        {"extra": 1},
        {"threads": 0},
        {"gate_us": -1.0},
        {"gate_us": "fast"},
        {"entries": None},
        {"entries": [{"block": 0, "option": "8", "engine_us": 1.0, "precision": "int8"}]},
        {"entries": [{"block": 1, "option": "8", "engine_us": -1.0, "precision": "int8"}]},
        {"entries": [{"block": 1, "option": "8", "engine_us": 1.0, "precision": "int4"}]},
        {"schema_version": 0},
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "latency.json"
    save_costs(file, table())
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with refuses(DataError, "latency", "save-costs"):
        load_costs(file)
