"""What every gate does, and that all of them do the same."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import subprocess
import sys
import weakref

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import EnvironmentLacksError, UsageError
from dfs_deploy.exporters.engines import gate_engine
from dfs_deploy.exporters.split import split_gate
from dfs_deploy.runtimes import native
from dfs_deploy.runtimes.gate import (
    MASKED,
    Features,
    GateWeights,
    NativeGate,
    NumpyGate,
    gate_for,
    native_available,
    read_gate_weights,
)
from tests.builders import small_network
from tests.bundles import mixed_bundle
from tests.checks import refuses
from tests.runtimes.gates import (
    KINDS,
    SHAPES,
    AnyGate,
    MakeGate,
    assert_same_bits,
    needs_native,
    random_features,
    random_integers,
    random_state,
    random_weights,
    rows_of,
    step_floats,
    step_forms,
)

NEAR = 1e-5
"""Scores nearer to each other than this may be ordered either way."""

pytestmark = pytest.mark.filterwarnings("error")


def reference_step(
    weights: GateWeights, block: int, pooled: np.ndarray, hidden: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and new state of one sample in double precision, unit by unit."""
    size = weights.hidden
    assert weights.recurrent_weight is not None
    shared = weights.recurrent_weight.astype(np.float64)

    def gate(kind: int, unit: int) -> float:
        row = kind * size + unit
        own = weights.input_weight[block, row, : len(pooled)].astype(np.float64)
        return float(own @ pooled + shared[row] @ hidden + weights.bias[block, row])

    def sigmoid(x: float) -> float:
        return 1.0 / (1.0 + math.exp(-x))

    new_cell = np.array(
        [sigmoid(gate(1, i)) * cell[i] + sigmoid(gate(0, i)) * math.tanh(gate(2, i)) for i in range(size)]
    )
    new_hidden = np.array([sigmoid(gate(3, i)) * math.tanh(new_cell[i]) for i in range(size)])
    return weights.projection_weight @ new_hidden + weights.projection_bias[block], new_hidden, new_cell


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("shape", "hidden", "options"),
    [
        (shape, *size)
        for shape, size in zip(SHAPES, itertools.cycle([(10, 4), (1, 1), (16, 2), (17, 5), (40, 20)]), strict=False)
    ],
)
def test_a_gate_steps_as_the_definition_says(make: MakeGate, shape: tuple[int, ...], hidden: int, options: int) -> None:
    weights = random_weights((shape[0],) * 3, hidden, options)
    gate = make(weights)
    gate.reset(1)
    state = (np.zeros(hidden), np.zeros(hidden))
    for block in range(3):
        features = random_features(1, shape, seed=block) / shape[0]
        decision = gate.bind(block, features, 1.0)()
        scores, *state = reference_step(weights, block, features[0].mean((1, 2), np.float64), *state)
        assert decision == scores.argmax()
        for actual, expected in zip(gate.state, state, strict=True):
            np.testing.assert_allclose(actual[0], expected, atol=2e-6)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("hidden", "options"), [(10, 4), (1, 1), (16, 2), (17, 20)])
def test_a_stateless_gate_steps_as_the_definition_says(make: MakeGate, hidden: int, options: int) -> None:
    shape = (24, 5, 4)
    weights = random_weights((24, 24), hidden, options, kind="stateless", widest=30)
    gate = make(weights)
    for block in (0, 1, 0):
        gate.reset(1)
        features = random_features(1, shape, seed=block)
        pooled = features[0].mean((1, 2), np.float64)
        units = np.maximum(weights.input_weight[block, :, :24] @ pooled + weights.bias[block], 0.0)
        scores = weights.projection_weight[block] @ units + weights.projection_bias[block]
        assert gate.bind(block, features, 1.0)() == scores.argmax()
        np.testing.assert_allclose(gate.state[0][0], units, atol=1e-5)


@pytest.mark.parametrize("make", KINDS)
def test_a_stateless_gate_forgets_what_it_saw_before(make: MakeGate) -> None:
    gate, samples = make(random_weights((6, 6), kind="stateless")), 50
    features = random_features(samples, (6, 3, 3))
    gate.reset(samples)
    expected = step_floats(gate, 1, features)
    assert len(np.unique(expected)) > 1
    with np.errstate(all="ignore"):
        step_floats(gate, 0, np.full_like(features, np.inf))
        step_floats(gate, 0, np.full_like(features, np.nan))
    np.testing.assert_array_equal(step_floats(gate, 1, features), expected)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["lstm", "stateless"]),
    st.tuples(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 33),
    st.integers(2, 20),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)
def test_both_gates_do_the_same_with_any_sizes_masks_and_grids(
    kind: str, shape: tuple[int, int, int], hidden: int, options: int, zero_point: int, seed: int
) -> None:
    rng, samples, scale = np.random.default_rng(seed), 20, 0.02
    weights = random_weights((shape[0],) * 2, hidden, options, seed=seed, kind=kind)
    offset = rng.normal(size=(2, options)).astype(np.float32)
    allowed = rng.random((2, options)) < 0.5
    allowed[np.arange(2), rng.integers(options, size=2)] = True
    offset[~allowed] = MASKED
    gates = [NumpyGate(weights), NativeGate(weights)]
    decisions = []
    for gate in gates:
        gate.set_score_offset(offset)
        gate.reset(samples)
        steps = []
        for block in range(2):
            floats, integers = random_features(samples, shape, seed), random_integers(samples, shape, seed)
            in_uint8 = np.arange(samples) % 3 > 0
            steps.append(step_forms(gate, block, floats, integers, in_uint8, scale, zero_point=zero_point))
            assert allowed[block, steps[-1]].all()
        decisions.append(np.stack(steps))
    # Scores as near to each other as rounding may be ordered either way, which then shows in the state as well.
    assert np.mean(decisions[0] != decisions[1]) <= 0.05
    for ours, theirs in zip(gates[0].state, gates[1].state, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("kind", ["lstm", "stateless"])
def test_a_masked_option_is_never_chosen_whatever_the_scores(make: MakeGate, kind: str) -> None:
    weights, samples = random_weights((4, 4), options=20, kind=kind), 100
    weights.projection_bias[:, [2, 17]] = 1e30, np.inf
    features = random_features(samples, (4, 2, 2))
    features[:10, 0] = np.nan
    features[10:20] = 1e30
    gate = make(weights)
    offset = np.zeros((2, 20), np.float32)
    offset[0, [0, 2, 17]] = offset[1, 1:] = MASKED
    gate.set_score_offset(offset)
    gate.reset(samples)
    bound = gate.bind(0, features[:1], 1.0)
    with np.errstate(all="ignore"):
        decisions = step_floats(gate, 0, features)
        assert not np.isin(decisions, [0, 2, 17]).any()
        assert (decisions[:10] == 1).all(), "of scores that are no numbers the first that is not masked"
        assert (step_floats(gate, 1, features) == 0).all()
        gate.reset(1)
        assert bound() == 1
        gate.set_score_offset(np.zeros((2, 20), np.float32))
        gate.reset(samples)
        assert (step_floats(gate, 0, features)[20:] == 17).all(), "a mask is lifted by the next offset"


@pytest.mark.parametrize("make", KINDS)
def test_masks_in_the_weights_hold_whatever_the_offset(make: MakeGate) -> None:
    weights = random_weights((4,))
    weights.projection_bias[0, :3] = MASKED
    gate = make(weights)
    features = random_features(50, (4, 2, 2))
    for offset in (0.0, 3e38, MASKED):
        gate.set_score_offset(np.full((1, 4), [offset] * 3 + [-1e6], np.float32))
        gate.reset(50)
        assert (step_floats(gate, 0, features) == 3).all()


@pytest.mark.parametrize("offset", [(0, 0, 0, 0), (0.0, 0.2, 0.7, 1.1)])
def test_numpy_native_and_onnx_agree_on_10000_random_states(offset: tuple[float, ...]) -> None:
    """With a score offset as well, which ONNX is given as another bias of the projection."""
    network = small_network(blocks=3, widths=(16, 32, 64))
    part = split_gate(network)
    added = np.array(offset, np.float32)
    offset_part = dataclasses.replace(part, projection_bias=part.projection_bias + added)
    session = ort.InferenceSession(gate_engine(offset_part), providers=["CPUExecutionProvider"])
    names = ("input_weight", "bias", "recurrent_weight", "projection_weight")
    makes: list[MakeGate] = [NumpyGate, NativeGate] if native_available() else [NumpyGate]
    blocks, samples = len(part.input_weight), 10_000
    near = 0
    for block in range(blocks):
        rows = samples // blocks + (block < samples % blocks)
        channels = part.input_weight[block].shape[1]
        features = random_features(rows, (channels, 4, 4), seed=block) * np.float32(0.1)
        hidden, cell = random_state(rows, seed=block)
        pooled = features.mean((2, 3), np.float64).astype(np.float32)
        feeds = {"pooled": pooled, "block": np.array(block), "hidden": hidden, "cell": cell}
        wanted = [*names, "scores", "decision", "hidden_out", "cell_out"]
        *values, scores, decision, new_hidden, new_cell = session.run(wanted, feeds)
        ordered = np.sort(scores, 1)
        clear = ordered[:, -1] - ordered[:, -2] > NEAR
        near += int((~clear).sum())
        assert len(np.unique(decision)) > 1
        for make in makes:
            gate = make(GateWeights(*values, part.projection_bias))
            gate.set_score_offset(np.repeat(added[None], blocks, 0))
            gate.reset(rows)
            gate.state = (hidden, cell)
            np.testing.assert_array_equal(step_floats(gate, block, features)[clear], decision[clear])
            np.testing.assert_allclose(gate.state[0], new_hidden, rtol=0, atol=1e-5)
            np.testing.assert_allclose(gate.state[1], new_cell, rtol=0, atol=1e-5)
    assert near <= samples // 1000


@pytest.mark.parametrize("make", KINDS)
def test_a_score_offset_is_another_bias_of_the_projection(make: MakeGate) -> None:
    weights, features = random_weights((4,) * 2), random_features(200, (4, 5, 5))
    offset = np.array([[0.5, -1.5, 0.25, 1.0], [-1.0, 0.5, 1.5, 0.0]], np.float32)
    biased = make(dataclasses.replace(weights, projection_bias=weights.projection_bias + offset))
    gate, other = make(weights), make(weights)
    bound = gate.bind(0, features[:1], 1.0)

    def decisions(stepped: AnyGate) -> np.ndarray:
        stepped.reset(len(features))
        return np.stack([step_floats(stepped, block, features) for block in (0, 1)])

    trained = decisions(gate)
    gate.set_score_offset(offset)
    np.testing.assert_array_equal(decisions(gate), decisions(biased))
    assert (decisions(gate) != trained).any()
    np.testing.assert_array_equal(decisions(other), trained)
    for sign, wanted in ((1, 3), (-1, 2)):
        gate.set_score_offset(sign * np.array([[0, 0, -1e3, 1e3]] * 2, np.float32))
        gate.reset(1)
        assert bound() == wanted, "a step that was bound before"
    gate.set_score_offset(np.zeros((2, 4), np.float32))
    np.testing.assert_array_equal(decisions(gate), trained)


@pytest.mark.parametrize("make", KINDS)
def test_of_equal_scores_the_lowest_index_wins(make: MakeGate) -> None:
    weights = random_weights((4,), options=20)
    weights.projection_weight[:] = 0.0
    for bias, expected in (
        ({}, 0),
        ({3: 1.0, 7: 1.0, 19: 1.0}, 3),
        ({17: 2.0, 18: 2.0}, 17),
        (dict.fromkeys(range(5), -1.0), 5),
        ({5: np.nan, 9: np.nan, 2: np.inf}, 5),  # as numpy.argmax has it
        (dict.fromkeys(range(20), -np.inf), 0),
    ):
        weights.projection_bias[:] = 0.0
        for index, value in bias.items():
            weights.projection_bias[:, index] = value
        gate = make(GateWeights(*(getattr(weights, name) for name in list(weights.__dataclass_fields__)[:5])))
        gate.reset(1)
        assert gate.bind(0, random_features(1, (4, 2, 2)), 1.0)() == weights.projection_bias.argmax() == expected


@pytest.mark.parametrize("make", KINDS)
def test_features_that_are_no_numbers_do_no_harm(make: MakeGate) -> None:
    gate = make(random_weights((3,)))
    for value in (np.nan, np.inf, -np.inf, 1e30, -1e30):
        gate.reset(1)
        features = random_features(1, (3, 2, 2))
        features[0, 1, 0, 0] = value
        with np.errstate(all="ignore"):
            assert gate.bind(0, features, 1.0)() in range(4)
        gate.reset(1)
        assert not gate.state[0].any()
        assert not gate.state[1].any()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("shape", "layouts"), list(zip(SHAPES, itertools.cycle(["mixed", "float32", "uint8"]), strict=False))
)
def test_a_sample_gets_the_same_bits_alone_and_in_any_batch(
    make: MakeGate, shape: tuple[int, ...], layouts: str
) -> None:
    samples, scale = 37, 0.03
    weights = random_weights((shape[0],) * 2)
    floats, integers = random_features(samples, shape), random_integers(samples, shape)
    rng = np.random.default_rng(1)
    in_uint8 = {
        "float32": np.zeros(samples, np.bool_),
        "uint8": np.ones(samples, np.bool_),
        "mixed": rng.random(samples) < 0.5,
    }[layouts]
    floats[in_uint8] = np.nan  # not to be read
    batch, single = make(weights), make(weights)
    batch.reset(samples)
    decisions = np.stack([step_forms(batch, block, floats, integers, in_uint8, scale) for block in range(2)])
    hidden, cell = batch.state
    for i in range(samples):
        single.reset(1)
        features: Features = integers[i : i + 1] if in_uint8[i] else floats[i : i + 1]
        assert [single.bind(block, features, scale)() for block in range(2)] == decisions[:, i].tolist()
        assert_same_bits(single.state, (hidden[i : i + 1], cell[i : i + 1]))


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("shape", [(24, 7, 7), (2, 33, 31)])
def test_uint8_is_worth_its_floats(make: MakeGate, shape: tuple[int, ...]) -> None:
    samples, scale = 50, 0.017
    integers = random_integers(samples, shape)
    floats = np.ascontiguousarray(integers.transpose(0, 3, 1, 2) * np.float32(scale))
    as_floats, as_integers = make(random_weights((shape[0],))), make(random_weights((shape[0],)))
    for gate, in_uint8 in ((as_floats, False), (as_integers, True)):
        gate.reset(samples)
        step_forms(gate, 0, floats, integers, np.full(samples, in_uint8), scale)
    for a, b in zip(as_floats.state, as_integers.state, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("shape", [(16, 32, 32), (32, 5, 5), (24, 7, 7), (2, 33, 31), (64, 300, 300)])
@pytest.mark.parametrize("zero_point", [1, 128, 255])
def test_a_zero_point_shifts_the_mean_exactly(make: MakeGate, shape: tuple[int, ...], zero_point: int) -> None:
    """The units of a stateless gate show the pooled features themselves."""
    channels, height, width = shape
    scale = 0.017
    eye = np.concatenate([np.eye(channels, dtype=np.float32), -np.eye(channels, dtype=np.float32)])
    weights = GateWeights(
        eye[None],
        np.zeros((1, 2 * channels), np.float32),
        None,
        *map(np.float32, (eye.T[None] * 0, [[0.0] * channels])),
    )
    gate = make(weights)
    samples = 2 if height == 300 else 9
    integers = random_integers(samples, shape)
    gate.reset(samples)
    gate.step(0, [integers], rows_of(np.zeros(samples)), scale, None, zero_point)
    units = gate.state[0]
    sums = integers.sum((1, 2), np.int64) - zero_point * height * width
    expected = (sums * np.float64(np.float32(scale / (height * width)))).astype(np.float32)
    np.testing.assert_array_equal(units[:, :channels] - units[:, channels:], expected)
    gate.reset(1)
    gate.bind(0, integers[:1], scale, zero_point)()
    assert_same_bits((gate.state[0],), (units[:1],))


def blocked(features: NDArray[np.float32], together: int) -> NDArray[np.float32]:
    """The same maps with so many channels together in memory, under the shape of the plain ones."""
    n, c, h, w = features.shape
    lying = features.reshape(n, c // together, together, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(lying).reshape(features.shape)


@pytest.mark.parametrize(
    ("shape", "together"), [((16, 32, 32), 16), ((32, 7, 9), 8), ((64, 1, 1), 4), ((48, 3, 11), 16)]
)
@pytest.mark.parametrize("make", KINDS)
def test_blocked_maps_are_worth_plain_ones(make: type[AnyGate], shape: tuple[int, ...], together: int) -> None:
    weights = random_weights((shape[0],) * 2)
    plain, other = make(weights), make(weights, channel_block=together)
    samples = 5
    features = random_features(samples, shape)
    integers, in_uint8 = random_integers(samples, shape), np.arange(samples) % 3 == 1
    for gate in (plain, other):
        gate.reset(samples)
    for block in range(2):
        expected = step_forms(plain, block, features, integers, in_uint8, 0.02)
        assert (step_forms(other, block, blocked(features, together), integers, in_uint8, 0.02) == expected).all()
    if make is NativeGate:
        assert_same_bits(plain.state, other.state)
    else:
        for ours, theirs in zip(plain.state, other.state, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    plain.reset(1)
    other.reset(1)
    alone = blocked(features[:1], together)
    assert other.bind(0, alone, 1.0)() == plain.bind(0, features[:1], 1.0)()
    for ours, theirs in zip(plain.state, other.state, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("make", KINDS)
def test_features_of_the_step_before_need_no_pooling(make: MakeGate) -> None:
    weights = random_weights((16, 16, 16))
    first, second = make(weights), make(weights)
    samples, shape = 6, (16, 5, 4)
    features, integers = random_features(samples, shape), random_integers(samples, shape)
    in_uint8 = np.array([False, True] * 3)
    garbage = np.full_like(features, 1e6)
    changed = np.array([True, True, False, False, False, False])
    for gate in (first, second):
        gate.reset(samples)
        step_forms(gate, 0, features, integers, in_uint8, 0.02)
    features[:2] += 1.0
    garbage[:2] = features[:2]
    expected = step_forms(first, 1, features, integers, in_uint8, 0.02)
    nothing = np.zeros_like(integers)
    nothing[:2] = integers[:2]
    assert (step_forms(second, 1, garbage, nothing, in_uint8, 0.02, changed) == expected).all()
    assert_same_bits(first.state, second.state)
    # The same for one sample: advance() after a step on the same features.
    first.reset(1)
    second.reset(1)
    one = features[:1].copy()
    bound = [second.bind(block, one, 1.0) for block in range(3)]
    expected_path = [first.bind(block, one, 1.0)() for block in range(3)]
    assert [bound[0](), bound[1].advance(), bound[2].advance()] == expected_path
    assert_same_bits(first.state, second.state)


@pytest.mark.parametrize("make", KINDS)
def test_pooled_features_step_as_their_maps_do(make: MakeGate) -> None:
    weights = random_weights((16, 24))
    samples = 4
    maps, given = make(weights), make(weights)
    for gate in (maps, given):
        gate.reset(samples)
    for block, channels in enumerate((16, 24)):
        # Values whose mean is exact in any order of additions.
        pooled = np.random.default_rng(block).integers(-8, 8, (samples, channels)).astype(np.float32)
        features = np.repeat(pooled[..., None], 4, 2).reshape(samples, channels, 2, 2)
        expected = step_floats(maps, block, features)
        assert (given.step_pooled(block, pooled) == expected).all()
        assert_same_bits(maps.state, given.state)
    maps.reset(1)
    given.reset(1)
    one = np.ones((1, 16), np.float32)
    step = given.bind_pooled(0, one)
    assert step() == maps.bind(0, np.ones((1, 16, 3, 3), np.float32), 1.0)()
    assert_same_bits(maps.state, given.state)


@pytest.mark.parametrize("make", KINDS)
def test_a_bound_step_reads_its_buffer_at_each_call(make: MakeGate) -> None:
    weights = random_weights((6,))
    features = random_features(1, (6, 3, 3))
    bound, fresh = make(weights), make(weights)
    step = bound.bind(0, features, 1.0)
    bound.reset(1)
    fresh.reset(1)
    for seed in range(20):
        features[:] = random_features(1, (6, 3, 3), seed)
        assert step() == fresh.bind(0, features, 1.0)()
    assert_same_bits(bound.state, fresh.state)


@pytest.mark.parametrize("make", KINDS)
def test_reset_forgets_and_bound_steps_survive_a_batch_between(make: MakeGate) -> None:
    gate = make(random_weights((6,)))
    features = random_features(1, (6, 3, 3))
    step = gate.bind(0, features, 1.0)
    gate.reset(1)
    first = [step() for _ in range(5)], gate.state
    gate.reset(300)
    step_floats(gate, 0, np.repeat(features, 300, 0))
    with refuses(UsageError, "300 samples", "reset(1)"):
        step()
    gate.reset(1)
    assert not gate.state[0].any()
    assert [step() for _ in range(5)] == first[0]
    assert_same_bits(gate.state, first[1])


@pytest.mark.parametrize("make", KINDS)
def test_an_empty_batch_is_a_batch(make: MakeGate) -> None:
    gate = make(random_weights((6,)))
    gate.reset(0)
    decisions = step_floats(gate, 0, np.zeros((0, 6, 3, 3), np.float32))
    assert decisions.shape == (0,)
    assert decisions.dtype == np.int64


@pytest.mark.parametrize("make", KINDS)
def test_a_bound_step_keeps_what_it_reads(make: MakeGate) -> None:
    weights = random_weights((6,))
    gate = make(weights)
    gate.reset(1)
    features = random_features(1, (6, 16, 16))
    expected = gate.bind(0, features.copy(), 1.0)()
    step = gate.bind(0, features, 1.0)
    gate.reset(1)
    alive = weakref.ref(features)
    del features, weights, gate
    gc.collect()
    assert alive() is not None
    noise = [random_features(1, (6, 16, 16), seed) for seed in range(50)]
    assert step() == expected
    del step, noise
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("make", KINDS)
def test_binding_and_dropping_leaves_nothing_behind(make: MakeGate) -> None:
    weights = random_weights((6,))
    features = random_features(1, (6, 4, 4))

    def cycles(count: int) -> None:
        for _ in range(count):
            gate = make(weights)
            step = gate.bind(0, features, 1.0)
            gate.reset(5)
            step_floats(gate, 0, np.repeat(features, 5, 0))
            gate.reset(1)
            step()
            del gate, step
        gc.collect()

    cycles(5)
    references, objects = sys.getrefcount(features), len(gc.get_objects())
    cycles(200)
    assert sys.getrefcount(features) == references
    assert len(gc.get_objects()) < objects + 100


@needs_native
def test_the_native_gate_is_chosen_where_it_was_compiled() -> None:
    assert gate_for(random_weights()).name == "native"
    assert gate_for(random_weights(), "native").name == "native"
    assert gate_for(random_weights(), "numpy").name == "numpy"


def test_the_numpy_gate_is_chosen_where_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_missing", "it was not compiled at install")
    assert not native_available()
    assert gate_for(random_weights()).name == "numpy"
    assert gate_for(random_weights(), "numpy").name == "numpy"
    with refuses(EnvironmentLacksError, "not compiled", "compiler", "--force-reinstall", "numpy"):
        gate_for(random_weights(), "native")


def test_other_kinds_are_refused() -> None:
    with refuses(UsageError, "'fpga'", "native", "numpy"):
        gate_for(random_weights(), "fpga")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(mixed_bundle(tmp_path_factory).path)


def test_the_weights_of_a_bundle_are_the_outputs_of_its_graph(bundle: Bundle) -> None:
    for runtime, engines in bundle.manifest.runtimes.items():
        assert engines.gate is not None
        weights = read_gate_weights(bundle, runtime)
        assert weights is not None
        names = ["input_weight", "bias", "recurrent_weight", "projection_weight"]
        hidden = np.zeros((1, weights.hidden), np.float32)
        feeds = {"pooled": np.zeros((1, weights.widest), np.float32), "block": np.array(0), "hidden": hidden}
        session = ort.InferenceSession(bundle.model(engines.gate), providers=["CPUExecutionProvider"])
        *values, bias = session.run([*names, "projection_bias"], {**feeds, "cell": hidden})
        for name, value in zip(names, values, strict=True):
            assert np.array_equal(getattr(weights, name), value)
        assert weights.projection_bias.shape == (weights.gates, weights.options)
        assert (weights.projection_bias == bias).all()


def test_weights_are_read_and_stepped_without_onnx_runtime(bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import numpy as np\n"
        "from dfs_deploy.bundle import Bundle\n"
        "from dfs_deploy.runtimes.gate import gate_for, read_gate_weights\n"
        "gate = gate_for(read_gate_weights(Bundle(sys.argv[1]), 'onnxruntime'))\n"
        "gate.reset(2)\n"
        "print(gate.step_pooled(0, np.ones((2, 4), np.float32)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
