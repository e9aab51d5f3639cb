"""The runtime end to end on doubles of TensorRT and pycuda."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import (
    BundleError,
    EngineError,
    EnvironmentLacksError,
    InputError,
    RuntimeClosedError,
    UsageError,
)
from dfs_deploy.runtimes import Result, Runtime
from dfs_deploy.runtimes.tensorrt.device import Stream
from dfs_deploy.runtimes.tensorrt.engine_cache import BuildSettings, prepare
from tests.bundles import (
    ALL_FIXED,
    FIXED,
    MASKED,
    Choices,
    Made,
    copied,
    narrowed,
    pixels,
    rewritten,
    static_bundle,
)
from tests.runtimes.tensorrt.conftest import BATCH
from tests.runtimes.tensorrt.direct import direct
from tests.runtimes.tensorrt.machine import VERSIONS, building_here, in_thread, left, machine

IMAGES = 24


@pytest.fixture
def gpu() -> Iterator[Any]:
    with machine() as device:
        yield device


@pytest.fixture
def runtime(prepared: Path, gpu: Any) -> Iterator[Runtime]:
    with Runtime(prepared, "tensorrt") as opened:
        yield opened


def one_by_one(runtime: Runtime, images: Any, path: Any = None) -> Result:
    results = [runtime(images[i : i + 1], path=None if path is None else path[i : i + 1]) for i in range(len(images))]
    return Result(
        np.concatenate([r.logits for r in results]), np.concatenate([r.path for r in results]), results[0].costs
    )


# Results


@pytest.mark.parametrize(("version", "integrated"), [*((version, False) for version in VERSIONS), (VERSIONS[1], True)])
def test_batches_and_single_images_agree_with_the_graphs_themselves(
    prepared_for: Callable[[str], Path], version: str, integrated: bool
) -> None:
    bundle, images = prepared_for(version), pixels(IMAGES)
    with machine(version, integrated=integrated), building_here():
        assert prepare(Bundle(bundle)).built == ()
        with Runtime(bundle, "tensorrt") as runtime, Runtime(bundle) as other:
            together, apart, expected = runtime(images), one_by_one(runtime, images), other(images)
    assert np.array_equal(together.path, expected.path)
    assert len(np.unique(together.path, axis=0)) > 4, "the images take different paths"
    assert np.array_equal(apart.path, together.path)
    np.testing.assert_array_equal(apart.logits, together.logits)
    np.testing.assert_allclose(together.logits, direct(bundle, images, together.path).logits, rtol=0, atol=1e-3)


def test_every_path_runs_in_a_batch_as_alone(runtime: Runtime, prepared: Path) -> None:
    path = np.array(np.meshgrid(*[range(4)] * 3)).reshape(3, -1).T
    images = pixels(len(path), seed=3)
    together, apart = runtime(images, path=path), one_by_one(runtime, images, path)
    assert np.array_equal(together.path, path)
    np.testing.assert_array_equal(together.logits, apart.logits)
    np.testing.assert_allclose(together.logits, direct(prepared, images, path).logits, rtol=0, atol=1e-3)


def test_a_result_does_not_depend_on_what_ran_before(runtime: Runtime) -> None:
    images = pixels(IMAGES)
    first = runtime(images)
    runtime(pixels(5, seed=8))
    order = np.random.default_rng(0).permutation(IMAGES)
    np.testing.assert_array_equal(runtime(images[order]).logits, first.logits[order])


def test_engines_for_one_image_run_batches_image_by_image(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    with machine(), building_here(), Runtime(bundle, "tensorrt") as runtime:
        assert runtime.description["batch"] == 1
        together = runtime(pixels(6))
        np.testing.assert_array_equal(together.logits, one_by_one(runtime, pixels(6)).logits)


def test_a_bias_on_the_scores_reaches_the_gate_and_its_clones(runtime: Runtime) -> None:
    images = pixels(IMAGES)
    runtime.set_cost_bias(1e5)
    costs = np.array(runtime.options.costs)
    assert (runtime(images).path == costs.argmin()).all()
    with runtime.clone() as clone:
        assert (clone(images).path == costs.argmin()).all()
    runtime.set_cost_bias(0.0)
    assert (runtime(images).path != costs.argmin()).any()


CHOICES: dict[str, Choices] = {
    "masked": MASKED,
    "one fixed": FIXED,
    "the last two fixed": {2: (["8"], None), 3: (["16"], "free")},
    "the first two fixed": {1: (["full"], "free"), 2: (["16"], None)},
    "one that is always skipped": {1: (["skip"], "free"), 3: (["skip", "full"], "free")},
    "all fixed": ALL_FIXED,
}


@pytest.mark.parametrize("what", CHOICES)
def test_blocks_with_choices_of_their_own(mixed: Made, tmp_path: Path, what: str) -> None:
    bundle = narrowed(copied(mixed, tmp_path), CHOICES[what])
    images = pixels(IMAGES)
    with machine(), building_here():
        prepare(Bundle(bundle), BuildSettings(batch=BATCH))
        with Runtime(bundle, "tensorrt") as runtime:
            together, apart = runtime(images), one_by_one(runtime, images)
            decided = len(runtime.bundle.architecture.decided(runtime.options))
            assert len(runtime.gate_calls()) == decided
    expected = direct(bundle, images)
    np.testing.assert_array_equal(together.path, expected.path)
    np.testing.assert_array_equal(apart.path, together.path)
    np.testing.assert_array_equal(apart.logits, together.logits)
    np.testing.assert_allclose(together.logits, expected.logits, rtol=0, atol=1e-3)
    assert (len(np.unique(together.path, axis=0)) > 1) == (decided > 0)


@pytest.mark.parametrize("what", CHOICES)
def test_the_host_waits_once_per_decided_block_and_for_the_logits(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    bundle, waits, wait = narrowed(copied(mixed, tmp_path), CHOICES[what]), [], Stream.synchronize

    def counted(stream: Stream) -> None:
        waits.append(stream)
        wait(stream)

    with machine(), building_here(), Runtime(bundle, "tensorrt") as runtime:
        monkeypatch.setattr(Stream, "synchronize", counted)
        path = runtime(pixels(1)).path[0]
        waited = len(waits)
        architecture = runtime.bundle.architecture
        decided = architecture.decided(runtime.options)
        # A gate whose features did not change since the one before need not wait for them again.
        ran = [index for index in range(1, len(architecture.blocks)) if path[index - 1] or index == 2]
        reads = {max([0, *(i for i in ran if i < index)]) for index in decided}
        assert waited == len(reads) + 1


# Skipped work


def test_a_skipped_block_enqueues_nothing(runtime: Runtime, gpu: Any) -> None:
    skip = runtime.options.names.index("skip")
    for images in (pixels(1), pixels(BATCH)):
        gpu.kernels.clear()
        runtime(images, path=np.full((len(images), 3), skip))
        assert gpu.kernels == ["stem", "block_2_skip", "head"], "the stride block passes on its projection"


def test_a_batch_makes_one_call_for_each_decision(runtime: Runtime, gpu: Any) -> None:
    names = runtime.options.names
    path = np.array([[names.index("8"), 0, names.index("full")]] * 3 + [[names.index("16"), 0, 0]] * 2)
    gpu.kernels.clear()
    runtime(pixels(5), path=path)
    assert gpu.kernels == [
        "stem",
        "block_1_option_8_int8",
        "block_1_option_16_fp16",
        "block_2_skip",
        "block_3_option_full_fp32",
        "head",
    ]


# A static policy


def test_a_static_policy_runs_its_own_engines_and_waits_once(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    made, images = static_bundle(tmp_path_factory), pixels(5)
    bundle = copied(made, tmp_path)
    with machine() as gpu, building_here():
        prepared = prepare(Bundle(bundle), BuildSettings(batch=4))
        assert prepared.built == (
            "the stem",
            "block 1, option 8 (int8)",
            "block 2, option skip",
            "block 3, option 16 (fp16)",
            "the head",
        )
        with Runtime(bundle, "tensorrt") as runtime, runtime.clone() as clone:
            assert runtime.description["gate"] == "none: a static policy"
            runtime.set_cost_bias(0.5)
            gpu.kernels.clear()
            together, apart = runtime(images), one_by_one(clone, images)
            assert gpu.kernels[:4] == ["stem", "block_1_option_8_int8", "block_2_skip", "block_3_option_16_fp16"]
            assert runtime.gate_calls() == ()
            with pytest.raises(InputError):
                runtime(images, path=np.zeros((5, 3), np.int64))
            with failing(gpu, "cuStreamSynchronize"), pytest.raises(EngineError, match="static policy"):
                clone(images[:1])
    assert (together.path == [1, 0, 2]).all()
    np.testing.assert_array_equal(together.logits, apart.logits)
    np.testing.assert_allclose(together.logits, direct(bundle, images, together.path).logits, rtol=0, atol=1e-3)


# Clones, closing, failures


def test_clones_run_in_threads_of_their_own(runtime: Runtime) -> None:
    images = pixels(IMAGES)
    expected = runtime(images)
    clones = [runtime.clone() for _ in range(2)]
    results: dict[int, list[Result]] = {0: [], 1: []}

    def work(which: int) -> None:
        with clones[which] as clone:
            for _ in range(4):
                results[which].append(clone(images))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in (*results[0], *results[1]):
        np.testing.assert_array_equal(result.logits, expected.logits)


def test_a_clone_outlives_what_it_came_from(prepared: Path, gpu: Any) -> None:
    runtime = Runtime(prepared, "tensorrt")
    expected = runtime(pixels(4))
    clone = runtime.clone()
    runtime.close()
    assert left(gpu)
    np.testing.assert_array_equal(in_thread(lambda: clone(pixels(4))).logits, expected.logits)
    clone.close()
    assert left(gpu) == {}


def test_closing_frees_everything_and_twice_is_fine(prepared: Path, gpu: Any) -> None:
    runtime = Runtime(prepared, "tensorrt")
    runtime(pixels(3))
    calls = runtime.engine_calls(np.array([0, 1, 2], np.uint8))
    for call in calls:
        call()
    assert len(calls) == 4
    assert runtime.engine_calls(np.array([0, 1, 2], np.uint8)) == calls
    assert [step() for step in runtime.gate_calls()]
    del calls, call
    runtime.close()
    runtime.close()
    assert left(gpu) == {}
    with pytest.raises(RuntimeClosedError):
        runtime(pixels(1))


@contextlib.contextmanager
def failing(gpu: Any, name: str, time: int = 1) -> Iterator[None]:
    """Has a call of the device fail, the first or a later one of its name."""
    seen, original = 0, gpu.fault

    def fault(what: str) -> bool:
        nonlocal seen
        seen += what == name
        return bool(original(what)) or (what == name and seen == time)

    gpu.fault = fault
    yield
    gpu.fault = original


@pytest.mark.parametrize("count", [1, BATCH])
def test_a_failure_names_block_and_option_and_closes(prepared: Path, gpu: Any, count: int) -> None:
    with Runtime(prepared, "tensorrt") as runtime:
        names = runtime.options.names
        path = np.full((count, 3), names.index("8"))
        with failing(gpu, "execute_async_v3", 3), pytest.raises(EngineError) as error:
            runtime(pixels(count), path=path)
        assert "block 2, option 8 (int8)" in str(error.value)
        assert "illegal memory access" in str(error.value), "TensorRT's own reason"
        assert left(gpu) == {}
        with pytest.raises(RuntimeClosedError, match="failure on the device"):
            runtime(pixels(1))


def test_a_failure_while_waiting_names_the_block(prepared: Path, gpu: Any) -> None:
    runtime = Runtime(prepared, "tensorrt")
    with (
        failing(gpu, "cuStreamSynchronize", 2),
        pytest.raises(EngineError, match=r"block 1, option full \(fp32\).*closed"),
    ):
        runtime(pixels(1), path=np.full((1, 3), 3))


def test_a_failure_of_one_clone_leaves_the_other(prepared: Path, gpu: Any) -> None:
    with Runtime(prepared, "tensorrt") as runtime:
        expected, clone = runtime(pixels(2)), runtime.clone()
        with failing(gpu, "cuMemcpyHtoDAsync"), pytest.raises(EngineError):
            clone(pixels(2))
        np.testing.assert_array_equal(runtime(pixels(2)).logits, expected.logits)


def test_engines_that_are_not_those_of_the_manifest(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    rewritten(bundle, {"tensorrt/block-01-8-int8.onnx": (bundle / "tensorrt/stem.onnx").read_bytes()})
    with machine(), building_here(), pytest.raises(BundleError, match="block 1, option 8"):
        Runtime(bundle, "tensorrt")


def test_without_a_gpu(prepared: Path, gpu: Any) -> None:
    with failing(gpu, "cuInit"), pytest.raises(EnvironmentLacksError, match="NVIDIA GPU"):
        Runtime(prepared, "tensorrt")


def test_choices_that_a_runtime_does_not_have(prepared: Path) -> None:
    with pytest.raises(UsageError, match="threads"):
        Runtime(prepared, "tensorrt", threads=2)
