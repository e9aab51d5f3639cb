from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.errors import OptionError
from dfs_deploy.options import (
    Option,
    Options,
    computation_percentage,
    engine_precision,
    parse_policy,
    parse_targets,
)
from tests.checks import refuses

VALID_BITS = (0, *range(2, 33))

bits = st.sampled_from(VALID_BITS)
bit_lists = st.lists(bits, min_size=2, max_size=12, unique=True)


@given(bit_lists)
def test_a_list_survives_its_text(some: list[int]) -> None:
    options = Options(some)
    assert Options.parse(str(options)) == options
    assert Options.parse(str(options)).bits == tuple(some)
    assert hash(Options.parse(str(options))) == hash(options)


@given(bits, bits)
def test_more_bits_cost_more(some: int, others: int) -> None:
    assert (Option(some).cost < Option(others).cost) == (some < others)


def test_costs_are_the_papers() -> None:
    assert Options.parse("skip,8,16,full").costs == (0.0, 0.0625, 0.25, 1.0)


def test_parsing_forgives_case_spaces_and_other_names() -> None:
    assert Options.parse(" Skip, 8 ,16,KEEP") == Options([0, 8, 16, 32])
    assert Options.parse("0,32") == Options.parse("skip,full")


def test_options_are_a_sequence_in_the_gates_order() -> None:
    options = Options([32, 0, 8])
    assert options.names == ("full", "skip", "8")
    assert len(options) == 3
    assert options[0] == Option(32)
    assert options[1:] == (Option(0), Option(8))
    assert [option.skips for option in options] == [False, True, False]
    assert [option.quantized for option in options] == [False, False, True]
    assert options != Options([0, 8, 32])
    assert options != (Option(32), Option(0), Option(8))
    assert eval(repr(options), {"Options": Options}) == options  # noqa: S307 (what repr promises)


@pytest.mark.parametrize("text", ["", "skip,", "skip,-8", "skip,33", "skip,²", "skip," + "9" * 5000], ids=ascii)
def test_what_is_no_option_list_is_refused(text: str) -> None:
    with refuses(OptionError, "expected"):
        Options.parse(text)


def test_an_option_given_twice_is_refused() -> None:
    with refuses(OptionError, "repeated"):
        Options.parse("skip,full,32")


@pytest.mark.parametrize("some", [33, 8.0, "8", None])
def test_bits_that_cannot_be_are_refused(some: object) -> None:
    with refuses(OptionError, "bits"):
        Option(some)  # type: ignore[arg-type]


def test_targets_come_back_least_precise_first() -> None:
    assert parse_targets("fp32") == ("fp32",)
    assert parse_targets("FP32, int8,fp16") == ("int8", "fp16", "fp32")


@pytest.mark.parametrize("text", ["", "int4,fp32"])
def test_unknown_targets_are_refused(text: str) -> None:
    with refuses(OptionError, "unknown target"):
        parse_targets(text)


def test_targets_need_full_precision() -> None:
    with refuses(OptionError, "add fp32"):
        parse_targets("int8,fp16")


@given(bits, st.sampled_from([("fp32",), ("fp16", "fp32"), ("int8", "fp32"), ("int8", "fp16", "fp32")]))
def test_an_option_is_served_by_the_cheapest_engine_precise_enough(some: int, targets: tuple[str, ...]) -> None:
    precision = engine_precision(Option(some), targets)
    holds = {"int8": 8, "fp16": 16, "fp32": 32}
    if some == 0:
        assert precision is None
    else:
        enough = [name for name in targets if holds[name] >= some]
        assert precision == min(enough, key=holds.__getitem__)


def test_no_engine_precise_enough_is_refused() -> None:
    with refuses(OptionError, "add fp32"):
        engine_precision(Option(32), ("int8", "fp16"))


@given(st.data(), bit_lists, st.integers(1, 5), st.integers(1, 8))
def test_computation_is_a_percentage_and_linear(
    data: st.DataObject, some: list[int], samples: int, blocks: int
) -> None:
    options = Options(some)
    choice = st.lists(st.integers(0, len(options) - 1), min_size=blocks, max_size=blocks)
    path = np.array(data.draw(st.lists(choice, min_size=samples, max_size=samples)), np.uint8)
    whole = computation_percentage(path, options.costs)
    assert whole.shape == (samples,)
    assert whole.dtype == np.float32
    assert ((whole >= 0) & (whole <= 100)).all()
    # The mean over blocks: it is that of the single blocks' figures, whatever their order.
    single = np.stack([computation_percentage(path[:, [block]], options.costs) for block in range(blocks)])
    np.testing.assert_allclose(whole, single.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole, computation_percentage(path[:, ::-1], options.costs), rtol=1e-5)
    # And linear in the costs.
    halved = computation_percentage(path, [cost / 2 for cost in options.costs])
    np.testing.assert_allclose(whole, 2 * halved, rtol=1e-5)


def test_computation_of_known_paths() -> None:
    costs = Options.parse("skip,8,16,full").costs
    path = np.array([[0, 0], [3, 3], [0, 3], [1, 2]])
    np.testing.assert_allclose(computation_percentage(path, costs), [0.0, 100.0, 50.0, 15.625])
    assert computation_percentage(np.zeros((2, 0), np.int64), costs).tolist() == [100.0, 100.0]


def test_computation_weighs_the_blocks() -> None:
    costs = Options.parse("skip,8,full").costs
    path = np.array([[0, 0, 0], [2, 2, 2], [2, 0, 0], [1, 0, 2], [0, 2, 0]])
    found = computation_percentage(path, costs, (1.5, 0.0, 0.5))
    np.testing.assert_allclose(found, [0.0, 100.0, 75.0, 75.0 * 0.0625 + 25.0, 0.0])
    assert computation_percentage(path, costs, (0.0, 0.0, 0.0)).tolist() == [100.0] * 5
    np.testing.assert_array_equal(
        computation_percentage(path, costs, (2.0, 2.0, 2.0)), computation_percentage(path, costs)
    )


def test_a_policy_is_read_by_name() -> None:
    options = Options.parse("skip,8,16,full")
    assert parse_policy(["full", "skip", "8", "8"], options) == (3, 0, 1, 1)
    assert parse_policy([], options) == ()
    with refuses(OptionError, "'4'", "skip,8,16,full"):
        parse_policy(["full", "4"], options)
