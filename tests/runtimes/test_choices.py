"""Networks whose blocks have options of their own: masked options, and fixed blocks that no gate decides about."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError, InputError, UsageError
from dfs_deploy.exporters.graph import GraphBuilder
from dfs_deploy.models import DFSNetwork
from dfs_deploy.runtimes import Runtime, native
from dfs_deploy.runtimes.dispatch import BlockStep, Call, loop_for
from dfs_deploy.runtimes.gate import GateWeights, NativeGate, NumpyGate, read_gate_weights
from tests.bundles import ALL_FIXED, FIXED, MASKED, Made, copied, manifest_of, narrowed, rewritten, write_manifest
from tests.checks import refuses
from tests.runtimes.gates import needs_native, random_features, random_weights
from tests.settled import normal_images, pixels

GATES = ["numpy", pytest.param("native", marks=needs_native)]
COUNTS = [1, 5, 40]


def with_other_gate(bundle: Path, gate: int) -> Path:
    """Gives one of the gates other weights of its own."""
    model = onnx.load_from_string(Bundle(bundle).model("common/gate.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name in ("input_weight_value", "bias_value"):
            values = numpy_helper.to_array(tensor).copy()
            values[gate] = np.random.default_rng(0).normal(size=values[gate].shape) * 5
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return rewritten(bundle, {"common/gate.onnx": model.SerializeToString()})


@pytest.mark.parametrize("gate", GATES)
def test_a_fixed_block_always_runs_its_option_and_the_gate_does_not_step(
    mixed: Made, tmp_path: Path, gate: str
) -> None:
    bundle = narrowed(copied(mixed, tmp_path), FIXED)
    images = pixels(40, seed=3)
    with Runtime(bundle, gate=gate) as runtime, Runtime(mixed.path, gate=gate) as whole:
        result = runtime(images)
        assert (result.path[:, 1] == 1).all()
        assert len(np.unique(result.path, axis=0)) > 2, "the gate decides about the others"
        assert len(runtime.gate_calls()) == 2
        np.testing.assert_array_equal(runtime(images, path=result.path).logits, result.logits)
        for row in range(8):
            one = slice(row, row + 1)
            alone = runtime(images[one])
            np.testing.assert_array_equal(alone.path, result.path[one])
            np.testing.assert_allclose(alone.logits, result.logits[one], rtol=0, atol=1e-4)
            # The engines are those of the whole bundle.
            np.testing.assert_array_equal(alone.logits, whole(images[one], path=alone.path).logits)
    with Runtime(with_other_gate(bundle, 1), gate=gate) as runtime:
        np.testing.assert_array_equal(runtime(images).path, result.path)
        np.testing.assert_array_equal(runtime(images[:1]).path, result.path[:1])
    with Runtime(with_other_gate(bundle, 2), gate=gate) as runtime:
        assert (runtime(images).path != result.path).any(), "the gate after the fixed block steps"


def scores_of(network: DFSNetwork, images: NDArray[np.uint8], block: int) -> NDArray[np.float32]:
    """Scores of the reference's gate at the first gated block."""
    assert network.gate is not None
    with torch.no_grad():
        features = network.stem(normal_images(len(images), seed=3))
        scores, _ = network.gate(block, features, network.gate.initial_state(features))
    return np.asarray(scores.numpy())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_masked_option_never_wins(mixed: Made, tmp_path: Path, gate: str, count: int) -> None:
    bundle, images = narrowed(copied(mixed, tmp_path), MASKED), pixels(40, seed=3)
    scores = scores_of(mixed.network, images, 0)
    assert (scores.argmax(1) == 1).any(), "some images would have taken the masked option"
    scores[:, 1] = -np.inf
    with Runtime(bundle, gate=gate) as runtime:
        path = np.concatenate([runtime(images[i : i + count]).path for i in range(0, 40, count)])
        np.testing.assert_array_equal(path[:, 0], scores.argmax(1))
        assert (path[:, 1] != 0).all()
        with runtime.clone() as clone:
            np.testing.assert_array_equal(clone(images[:count]).path, path[:count])
        for bias, expected in ((1e5, [0, 1, 0]), (-1e5, [3, 3, 3]), (0.0, None)):
            runtime.set_cost_bias(bias)
            found = runtime(images[:count]).path
            np.testing.assert_array_equal(found, path[:count] if expected is None else [expected] * count)


@pytest.mark.parametrize("gate", GATES)
def test_a_network_without_a_decision_runs(mixed: Made, tmp_path: Path, gate: str) -> None:
    bundle, images = narrowed(copied(mixed, tmp_path), ALL_FIXED), pixels(20)
    with Runtime(bundle, gate=gate) as runtime, Runtime(mixed.path) as whole:
        result, alone = runtime(images), runtime(images[:1])
        assert (result.path == [2, 1, 3]).all()
        assert result.computation_percentage.tolist() == [100.0] * 20
        np.testing.assert_array_equal(alone.logits, whole(images[:1], path=alone.path).logits)
        np.testing.assert_allclose(result.logits, whole(images, path=result.path).logits, rtol=0, atol=1e-5)
        assert runtime.gate_calls() == ()
        with refuses(UsageError, "no budget"):
            runtime.set_budget(0.5)
        runtime.set_cost_bias(3.0)
        np.testing.assert_array_equal(runtime(images).path, result.path)


def test_a_path_that_a_block_may_not_run_is_refused(mixed: Made, tmp_path: Path) -> None:
    bundle = narrowed(copied(mixed, tmp_path), {**MASKED, 3: (["8"], "free")})
    with Runtime(bundle) as runtime:
        runtime(pixels(2), path=np.array([[0, 1, 1], [3, 3, 1]]))
        with refuses(InputError, "path 1", "option '8'", "block 1", "skip, 16, full"):
            runtime(pixels(2), path=np.array([[0, 1, 1], [1, 3, 1]]))
        with refuses(InputError, "path 0", "option 'skip'", "block 2", "8, 16, full"):
            runtime(pixels(1), path=np.array([[0, 0, 1]]))
        with refuses(InputError, "option 'full'", "block 3", "may run 8;"):
            runtime.engine_calls(np.array([0, 1, 3], np.uint8))


def test_computation_weighs_the_decided_blocks_alone(mixed: Made, tmp_path: Path) -> None:
    bundle = narrowed(copied(mixed, tmp_path), FIXED)
    manifest = manifest_of(bundle)
    for block, macs in zip(manifest["architecture"]["blocks"], (7, 30, 1000, 10), strict=True):
        block["macs"] = macs
    write_manifest(bundle, manifest)
    with Runtime(bundle) as runtime:
        path = np.array([[0, 1, 0], [3, 1, 3], [3, 1, 0], [0, 1, 3], [1, 1, 0]])
        found = runtime(pixels(5), path=path).computation_percentage
        np.testing.assert_allclose(found, [0.0, 100.0, 75.0, 25.0, 75.0 * 0.0625])
        # The price of a bias goes by the weight too: that of block 1 is three times that of block 3.
        assert runtime.bundle.architecture.weights(runtime.options) == (1.5, 0.0, 0.5)


def test_samples_of_paths_that_cannot_be_are_refused(mixed: Made, tmp_path: Path) -> None:
    bundle = Bundle(narrowed(copied(mixed, tmp_path), {**MASKED, 3: (["16"], "free")}))
    with refuses(BundleError, "samples.npz", "may not run"):
        bundle.samples()


# Gates of other kinds and shapes


def gate_model(weights: GateWeights) -> bytes:
    """A gate.onnx whose outputs are weights, which is all that a runtime reads of it."""
    graph = GraphBuilder("gate")
    graph.input("pooled", np.float32, ("N", "channels"))
    graph.input("block", np.int64, ())
    if weights.recurrent_weight is not None:
        graph.input("hidden", np.float32, ("N", weights.hidden))
        graph.input("cell", np.float32, ("N", weights.hidden))
    for name in ("input_weight", "bias", "recurrent_weight", "projection_weight", "projection_bias"):
        value = getattr(weights, name)
        if value is not None:
            graph.output(graph.node("Identity", graph.constant(f"{name}_value", value)), name, np.float32, value.shape)
    return graph.build()


@pytest.mark.parametrize("kind", ["lstm", "stateless"])
def test_gates_with_a_projection_for_each_block(mixed: Made, tmp_path: Path, kind: str) -> None:
    made = random_weights((4, 4, 8), 10, 4, seed=7, kind=kind)
    bundle = narrowed(copied(mixed, tmp_path), MASKED)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["architecture"]["gate"]["kind"] = kind

    opened = Bundle(rewritten(bundle, {"common/gate.onnx": gate_model(made)}, edit))
    read = read_gate_weights(opened, "onnxruntime")
    assert read is not None
    for name in ("input_weight", "bias", "projection_weight", "projection_bias"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert (read.recurrent_weight is None) == (kind == "stateless")
    images, paths = pixels(40, seed=3), []
    for gate in ("numpy", "native") if native.why_missing is None else ("numpy",):
        with Runtime(opened, gate=gate) as runtime:
            paths += [runtime(images).path, np.concatenate([runtime(image[None]).path for image in images])]
    assert len(np.unique(paths[0], axis=0)) > 1
    for path in paths[1:]:
        np.testing.assert_array_equal(path, paths[0])
    allowed = opened.architecture.allowed(opened.options)
    assert allowed[np.arange(3), paths[0]].all()


@pytest.mark.parametrize("spoilt", ["input_weight", "projection_weight", "projection_bias"])
def test_weights_of_another_kind_of_gate_are_refused(mixed: Made, tmp_path: Path, spoilt: str) -> None:
    weights = random_weights((4, 4, 8), 10, 4, kind="stateless")
    wrong = dataclasses.replace(weights, **{spoilt: getattr(weights, spoilt)[:, :-1]})

    def edit(manifest: dict[str, Any]) -> None:
        manifest["architecture"]["gate"]["kind"] = "stateless"

    bundle = rewritten(copied(mixed, tmp_path), {"common/gate.onnx": gate_model(wrong)}, edit)
    with refuses(BundleError, "gate", "other shapes"):
        Runtime(bundle)
    with refuses(BundleError, "gate", "has 2 inputs, expected 4 (pooled, block, hidden, cell)"):
        Runtime(rewritten(copied(mixed, tmp_path / "lstm"), {"common/gate.onnx": gate_model(weights)}))
    with refuses(BundleError, "gate", "has an input 'hidden', expected pooled, block;"):
        Runtime(rewritten(copied(mixed, tmp_path / "stateless"), {}, edit))


# The loops


@needs_native
@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_both_loops_do_the_same(data: st.DataObject, blocks: int, seed: int) -> None:
    """On the same features, with any blocks fixed, of which some call nothing."""
    options, channels = 3, 4
    always = data.draw(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=blocks, max_size=blocks))
    reuses = data.draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks))
    forced = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=blocks, max_size=blocks))
    start = data.draw(st.integers(0, 1))
    weights = random_weights((channels,) * blocks, options=options, seed=seed)
    rng = np.random.default_rng(seed)
    changes = rng.normal(size=(blocks, options, channels, 1, 1)).astype(np.float32)
    results = []
    for gate in (NumpyGate(weights), NativeGate(weights)):
        features = [random_features(1, (channels, 3, 3), seed % 1000 + slot) for slot in range(2)]
        called: list[tuple[int, int, int]] = []

        def call(
            block: int, option: int, slot: int, features: Any = features, called: Any = called
        ) -> tuple[Call | None, int]:
            def run() -> None:
                called.append((block, option, slot))
                np.add(features[slot], changes[block, option], features[1 - slot])

            return (None, slot) if option == 0 else (run, 1 - slot)

        steps = [
            [
                BlockStep(
                    None if fixed is not None else gate.bind(block, features[slot], 1.0),
                    block > 0 and reuses[block],
                    tuple(call(block, option, slot) for option in range(options)),
                    fixed or 0,
                )
                for slot in range(2)
            ]
            for block, fixed in enumerate(always)
        ]
        loop = loop_for(gate, steps, start)
        gate.reset(1)
        path = loop.run(None if forced is None else bytes(forced))
        results.append((bytes(path), called, loop.slot))
        for block, fixed in enumerate(always):
            expected = fixed if fixed is not None else None if forced is None else forced[block]
            assert expected is None or path[block] == expected
    assert results[0] == results[1]


@needs_native
def test_the_compiled_loop_refuses_what_it_cannot_run() -> None:
    from dfs_deploy.runtimes.native._gate import CompiledLoop

    assert native.why_missing is None
    gate = NativeGate(random_weights((4,), options=2))
    choices: tuple[tuple[Call | None, int], ...] = ((None, 0), (None, 0))
    for always in (-1, 2):
        with pytest.raises(ValueError, match="always"):
            CompiledLoop(gate.compiled, [[BlockStep(None, False, choices, always)]])
    for start in (-1, 1):
        with pytest.raises(ValueError, match="start"):
            CompiledLoop(gate.compiled, [[BlockStep(None, False, choices, 0)]], start)


@needs_native
def test_an_engine_cannot_touch_the_gate_that_decided_to_call_it() -> None:
    """The loop holds on to the gate's states while engines run."""
    gate, features = NativeGate(random_weights((4,) * 3, options=1)), random_features(1, (4, 3, 3))
    seen: list[UsageError] = []

    def engine() -> None:
        for touch in (lambda: gate.reset(1000), lambda: gate.state, lambda: loop.run(None)):
            with pytest.raises(UsageError, match="the gate is stepping") as error:
                touch()
            seen.append(error.value)

    def failing() -> None:
        raise ZeroDivisionError

    def loop_of(call: Call) -> Any:
        return loop_for(gate, [[BlockStep(gate.bind(block, features, 1.0), False, ((call, 0),))] for block in range(3)])

    loop = loop_of(engine)
    gate.reset(1)
    assert loop.run(None) == bytes(3)
    assert len(seen) == 9
    with pytest.raises(ZeroDivisionError):
        loop_of(failing).run(None)
    gate.reset(1000)
