from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import (
    BundleError,
    DigestError,
    EngineError,
    InputError,
    OutOfMemoryError,
    RuntimeClosedError,
    UsageError,
)
from dfs_deploy.options import computation_percentage
from dfs_deploy.runtimes import BACKENDS, Result, Runtime
from dfs_deploy.runtimes.onnxruntime import OnnxRuntimeBackend
from tests.bundles import Made, copied, write_manifest
from tests.bundles import manifest_of as values
from tests.checks import refuses
from tests.settled import pixels

FLOATS, PIXELS = (3, 8, 8), (8, 8, 3)


@pytest.fixture(scope="module")
def runtime(mixed: Made) -> Iterator[Runtime]:
    with Runtime(mixed.path) as opened:
        yield opened


def same(first: Result, second: Result) -> bool:
    return np.array_equal(first.path, second.path) and np.array_equal(first.logits, second.logits)


# Inputs


@pytest.mark.parametrize("count", [1, 3])
def test_a_result_has_the_shapes_and_types_that_it_promises(runtime: Runtime, count: int) -> None:
    result = runtime(pixels(count))
    assert (result.logits.shape, result.logits.dtype) == ((count, 10), np.float32)
    assert (result.path.shape, result.path.dtype) == ((count, 3), np.uint8)
    assert (result.classes.shape, result.classes.dtype) == ((count,), np.int64)
    assert (result.computation_percentage.shape, result.computation_percentage.dtype) == ((count,), np.float32)
    assert np.array_equal(result.classes, result.logits.argmax(1))
    weights = runtime.bundle.architecture.weights(runtime.options)
    expected = computation_percentage(result.path, runtime.options.costs, weights)
    assert np.array_equal(result.computation_percentage, expected)


@pytest.mark.parametrize("count", [1, 5])
def test_pixels_and_normalised_floats_agree(runtime: Runtime, count: int) -> None:
    images = pixels(count)
    assert same(runtime(images), runtime(runtime.input.normalize(images)))


@pytest.mark.parametrize("count", [1, 4])
def test_the_layout_in_memory_does_not_matter(runtime: Runtime, count: int) -> None:
    images = pixels(count)
    expected = runtime(images)
    floats = runtime.input.normalize(images)
    read_only = images.copy()
    read_only.setflags(write=False)
    for given in (
        np.asfortranarray(images),
        read_only,
        np.repeat(images, 2, axis=0)[::2],
        np.asfortranarray(floats),
        np.ascontiguousarray(floats[..., ::-1])[..., ::-1],
    ):
        assert same(runtime(given), expected)


def spoilt(value: float) -> NDArray[np.float32]:
    images = np.zeros((2, *FLOATS), np.float32)
    images[1, 2, 3, 4] = value
    return images


BAD: dict[str, tuple[Any, str]] = {
    "an empty batch": (np.zeros((0, *FLOATS), np.float32), "empty"),
    "an empty batch of pixels": (np.zeros((0, *PIXELS), np.uint8), "empty"),
    "one image without a batch": (np.zeros(FLOATS, np.float32), "(3, 8, 8)"),
    "pixels without a batch": (np.zeros(PIXELS, np.uint8), "(8, 8, 3)"),
    "another size": (np.zeros((1, 3, 9, 8), np.float32), "(1, 3, 9, 8)"),
    "channels last in floats": (np.zeros((1, *PIXELS), np.float32), "(1, 8, 8, 3)"),
    "channels first in pixels": (np.zeros((1, *FLOATS), np.uint8), "(1, 3, 8, 8)"),
    "one channel": (np.zeros((1, 1, 8, 8), np.float32), "(1, 1, 8, 8)"),
    "double precision": (np.zeros((1, *FLOATS)), "float64"),
    "half precision": (np.zeros((1, *FLOATS), np.float16), "float16"),
    "signed bytes": (np.zeros((1, *PIXELS), np.int8), "int8"),
    "objects": (np.zeros((1, *FLOATS), object), "object"),
    "complex numbers": (np.zeros((1, *FLOATS), np.complex64), "complex64"),
    "NaN": (spoilt(np.nan), "image 1"),
    "infinity": (spoilt(np.inf), "image 1"),
    "minus infinity": (spoilt(-np.inf), "image 1"),
    "a list": ([[1.0]], "list"),
    "nothing": (None, "NoneType"),
    "text": ("image.png", "str"),
    "a scalar": (np.float32(1), "float32"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_input_that_the_network_cannot_take(runtime: Runtime, what: str) -> None:
    images, word = BAD[what]
    with refuses(InputError, word, "expected"):
        runtime(images)
    runtime(pixels(1))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_large_finite_values_are_no_infinity(runtime: Runtime) -> None:
    images = np.full((2, *FLOATS), 3e38, np.float32)
    assert np.array_equal(runtime.input.prepare(images), images)


# Paths


def test_a_path_can_be_forced(runtime: Runtime) -> None:
    images = pixels(4)
    path = np.array([[0, 1, 2], [3, 0, 0], [0, 0, 0], [3, 3, 3]], np.uint8)
    result = runtime(images, path=path)
    assert np.array_equal(result.path, path)
    for row in range(4):
        alone = runtime(images[row : row + 1], path=path[row : row + 1])
        np.testing.assert_allclose(alone.logits, result.logits[row : row + 1], rtol=0, atol=1e-4)
    assert result.computation_percentage.tolist()[2:] == [0.0, 100.0]


@pytest.mark.parametrize("count", [1, 16])
def test_forcing_what_the_gate_chooses_changes_nothing(runtime: Runtime, count: int) -> None:
    free = runtime(pixels(count))
    assert same(runtime(pixels(count), path=free.path), free)
    assert same(runtime(pixels(count), path=free.path.astype(np.int64)), free)


BAD_PATHS: dict[str, tuple[Any, str]] = {
    "another length": (np.zeros((2, 4), np.uint8), "(2, 4)"),
    "another batch": (np.zeros((1, 3), np.uint8), "(1, 3)"),
    "one dimension": (np.zeros(3, np.uint8), "(3,)"),
    "floats": (np.zeros((2, 3)), "float64"),
    "booleans": (np.zeros((2, 3), bool), "bool"),
    "an option that is none": (np.full((2, 3), 4), "4"),
    "a negative option": (np.full((2, 3), -1), "-1"),
    "a number that would wrap round": (np.full((2, 3), 256), "256"),
}


@pytest.mark.parametrize("what", BAD_PATHS)
def test_a_path_that_cannot_be(runtime: Runtime, what: str) -> None:
    path, word = BAD_PATHS[what]
    with refuses(InputError, word, "expected"):
        runtime(pixels(2), path=path)


# Results belong to the caller


@pytest.mark.parametrize("count", [1, 3])
def test_a_result_can_be_kept_and_changed(runtime: Runtime, count: int) -> None:
    images = pixels(count)
    first = runtime(images)
    kept = first.logits.copy(), first.path.copy()
    runtime(pixels(count, seed=7))
    assert np.array_equal(first.logits, kept[0])
    assert np.array_equal(first.path, kept[1])
    first.logits[:] = np.nan
    first.path[:] = 200
    again = runtime(images)
    assert np.array_equal(again.logits, kept[0])
    assert np.array_equal(again.path, kept[1])


@pytest.mark.parametrize("count", [1, 3])
def test_an_input_is_not_changed(runtime: Runtime, count: int) -> None:
    images = runtime.input.normalize(pixels(count))
    before = images.copy()
    runtime(images)
    assert np.array_equal(images, before)


# Life


def test_a_closed_runtime_says_so(mixed: Made) -> None:
    runtime = Runtime(mixed.path)
    runtime.close()
    runtime.close()
    for use in (
        lambda: runtime(pixels(1)),
        runtime.clone,
        lambda: runtime.substitutions,
        lambda: runtime.description,
        lambda: runtime.engine_calls(np.zeros(3, np.uint8)),
        runtime.gate_calls,
        runtime.__enter__,
    ):
        with refuses(RuntimeClosedError, "closed"):
            use()
    assert runtime.options.names == ("skip", "8", "16", "full"), "what the bundle says stays"


def test_a_with_block_closes_also_after_an_error(mixed: Made) -> None:
    with pytest.raises(ZeroDivisionError), Runtime(mixed.path) as runtime:
        raise ZeroDivisionError
    with pytest.raises(RuntimeClosedError):
        runtime(pixels(1))


def test_an_opened_bundle_can_be_run(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    with Runtime(bundle) as runtime, Runtime(str(mixed.path)) as other:
        assert runtime.bundle is bundle
        assert same(runtime(pixels(3)), other(pixels(3)))


def test_a_file_that_changed_after_opening_is_noticed(mixed: Made, tmp_path: Path) -> None:
    bundle = Bundle(copied(mixed, tmp_path))
    file = bundle.path / "common/head.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with refuses(DigestError, "head.onnx"):
        Runtime(bundle)


def test_an_unknown_runtime(mixed: Made) -> None:
    with refuses(UsageError, "openvino", *BACKENDS):
        Runtime(mixed.path, "openvino")


def test_a_runtime_that_the_bundle_was_not_made_for(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    manifest = values(bundle)
    del manifest["runtimes"]["onnxruntime"]
    write_manifest(bundle, manifest)
    with refuses(BundleError, "onnxruntime", "tensorrt"):
        Runtime(bundle)


def test_no_threads(mixed: Made) -> None:
    with refuses(UsageError, "-1"):
        Runtime(mixed.path, threads=-1)


def test_no_bundle(tmp_path: Path) -> None:
    with refuses(BundleError, "missing.dfs"):
        Runtime(tmp_path / "missing.dfs")


def test_what_a_report_needs_is_described(runtime: Runtime) -> None:
    facts = runtime.description
    assert facts["runtime"] == "onnxruntime"
    assert facts["threads"] == 1
    assert facts["version"]
    assert facts["gate"]
    assert runtime.input.class_names == tuple("abcdefghij")


# Threads


def test_two_threads_in_one_runtime_are_refused(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, leave = threading.Event(), threading.Event()
    original = OnnxRuntimeBackend.infer

    def slow(self: OnnxRuntimeBackend, images: Any, forced: Any) -> Any:
        inside.set()
        assert leave.wait(20)
        return original(self, images, forced)

    with Runtime(mixed.path) as runtime:
        expected = runtime(pixels(2))
        monkeypatch.setattr(OnnxRuntimeBackend, "infer", slow)
        results: list[Result] = []
        thread = threading.Thread(target=lambda: results.append(runtime(pixels(2))))
        thread.start()
        assert inside.wait(20)
        for use in (lambda: runtime(pixels(2)), runtime.gate_calls, lambda: runtime.set_cost_bias(0.5)):
            with refuses(UsageError, "clone()"):
                use()
        leave.set()
        thread.join()
        assert same(results[0], expected), "the first thread is not disturbed"
        monkeypatch.undo()
        assert same(runtime(pixels(2)), expected), "and afterwards all is as before"


def test_a_failed_call_does_not_block_the_next(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", fail)
    with refuses(OutOfMemoryError, "1 image(s)"):
        runtime(pixels(1))
    monkeypatch.undo()
    runtime(pixels(1))


def test_clones_run_side_by_side(runtime: Runtime) -> None:
    images = [pixels(count, seed=count) for count in (1, 2, 1, 5)]
    expected = [runtime(batch) for batch in images]
    wrong: list[str] = []

    def work(number: int) -> None:
        with clones[number] as clone:
            for turn in range(25):
                index = (number + turn) % len(images)
                if not same(clone(images[index]), expected[index]):
                    wrong.append(f"thread {number}, turn {turn}")

    clones = [runtime.clone() for _ in range(4)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_clone_outlives_what_it_was_cloned_from(mixed: Made) -> None:
    runtime = Runtime(mixed.path)
    expected = runtime(pixels(3))
    clone = runtime.clone()
    runtime.close()
    assert same(clone(pixels(3)), expected)
    assert same(clone(pixels(3)[:1]), Runtime(mixed.path)(pixels(3)[:1]))
    clone.close()


def test_an_application_that_shares_its_own_allocator_can_run_bundles_too(mixed: Made) -> None:
    script = """
import sys
import numpy as np
import onnxruntime as ort
memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(memory, None)
from dfs_deploy import Runtime
print(Runtime(sys.argv[1])(np.zeros((1, 8, 8, 3), np.uint8)).logits.shape)
"""
    ran = subprocess.run([sys.executable, "-c", script, str(mixed.path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "(1, 10)" in ran.stdout


# Long batches, and numbers that are none


@pytest.mark.parametrize(("count", "forced"), [(7, False), (8, True), (22, False)])
def test_a_long_batch_runs_in_parts_with_the_same_results(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, count: int, forced: bool
) -> None:
    images = pixels(count)
    path = np.random.default_rng(3).integers(0, 4, (count, 3)) if forced else None
    whole = runtime(images, path=path)
    monkeypatch.setattr(runtime, "_most", 7)
    assert runtime(images, path=path) == whole
    assert runtime(runtime.input.normalize(images), path=path) == whole
    assert (
        runtime(images[::-1], path=None if path is None else path[::-1]).logits.tolist() == whole.logits[::-1].tolist()
    )


def test_parts_are_of_bounded_size_whatever_the_batch(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def infer(self: OnnxRuntimeBackend, images: Any, forced: Any, first: int) -> Any:
        assert first == sum(seen) // (3 * 8 * 8)
        seen.append(images.nbytes)
        return np.zeros((len(images), 10), np.float32), np.zeros((len(images), 3), np.uint8)

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", infer)
    shared = np.broadcast_to(np.zeros((1, *PIXELS), np.uint8), (200_000, *PIXELS))
    assert runtime(shared).logits.shape == (200_000, 10)
    assert sum(seen) == 200_000 * 3 * 8 * 8
    assert 4 * max(seen) <= 32 << 20, "in float32"


@pytest.mark.parametrize("count", [1, 5])
def test_pixels_of_another_size_are_fitted_to_the_network(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    images = pixels(count, size=(20, 13))
    fitted = np.stack([runtime.input.fit(image) for image in images])
    expected = runtime(fitted)
    assert runtime(images) == expected
    monkeypatch.setattr(runtime, "_most", 2)
    np.testing.assert_allclose(runtime(images).logits, expected.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("what", ["an empty batch", "another size", "double precision", "NaN"])
def test_a_long_batch_is_refused_as_a_short_one(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    images, word = BAD[what]
    many = np.concatenate([images, images[:1], images]) if images.ndim and len(images) else images
    monkeypatch.setattr(runtime, "_most", 1)
    with refuses(InputError, *([word] if "image" in word else []), "expected"):
        runtime(many)


def overflowing(count: int, index: int) -> NDArray[np.float32]:
    """Finite images, the one at an index of values that overflow on the way."""
    images = np.zeros((count, *FLOATS), np.float32)
    images[index] = np.where(np.arange(64).reshape(8, 8) % 2, 3e38, -3e38)
    return images


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("count", "index", "most"), [(1, 0, 99), (20, 13, 99), (20, 13, 6)])
def test_finite_values_that_end_in_no_number_are_refused(
    floats: Made, monkeypatch: pytest.MonkeyPatch, count: int, index: int, most: int
) -> None:
    with Runtime(floats.path) as runtime:
        monkeypatch.setattr(runtime, "_most", most)
        full = np.full((count, 3), 2)
        with refuses(InputError, f"image {index} of the batch", "not finite", "-3e+38 to 3e+38", "normalised"):
            runtime(overflowing(count, index), path=full)
        assert np.isfinite(runtime(pixels(count)).logits).all(), "and it can be used again"


@pytest.mark.parametrize(("value", "classes"), [(np.nan, 10), (-np.inf, 1000)])
def test_pixels_that_end_in_no_number_are_the_engines_fault(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, value: float, classes: int
) -> None:
    logits = np.zeros((3, classes), np.float32)
    logits[1, 7] = value
    monkeypatch.setattr(OnnxRuntimeBackend, "infer", lambda *_: (logits, np.zeros((3, 3), np.uint8)))
    with refuses(EngineError, "image 1 of the batch", "not finite", "dfs-deploy verify"):
        runtime(pixels(3))


def test_logits_may_be_as_large_as_numbers_get(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.full((2, 10), np.finfo(np.float32).max)
    monkeypatch.setattr(OnnxRuntimeBackend, "infer", lambda *_: (logits, np.zeros((2, 3), np.uint8)))
    assert np.array_equal(runtime(pixels(2)).logits, logits)


# Memory and threads that run out


LIMITED = """
import resource, sys
import numpy as np
import dfs_deploy.runtimes.onnxruntime
from dfs_deploy import Runtime
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
net = Runtime(sys.argv[1], prepared=False) if sys.argv[2] == "call" else None
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[3]) << 20), resource.RLIM_INFINITY))
try:
    if net is None:
        Runtime(sys.argv[1], threads=int(sys.argv[4]))
    else:
        net(np.broadcast_to(np.zeros((1, 8, 8, 3), np.uint8), (int(sys.argv[4]), 8, 8, 3)))
except Exception as error:
    print(type(error).__name__, str(error))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
with net or Runtime(sys.argv[1]) as again:
    print(again(np.zeros((2, 8, 8, 3), np.uint8)).logits.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize(
    ("kind", "mib", "count", "name", "words"),
    [
        ("call", 16, 30_000_000, "OutOfMemoryError", "30,000,000 image(s)"),
        ("load", 1, 1, "OutOfMemoryError", "mixed.dfs"),
        ("load", 64, 8, "EnvironmentLacksError", "--threads 1"),
    ],
)
def test_what_runs_out_is_named_and_the_process_goes_on(
    mixed: Made, kind: str, mib: int, count: int, name: str, words: str
) -> None:
    command = [sys.executable, "-c", LIMITED, str(mixed.path), kind, str(mib), str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    said, again = ran.stdout.splitlines()
    assert said.startswith(f"{name} ")
    assert words in said
    assert again == "(2, 10)"


def test_threads_are_bounded_and_what_was_not_given_is_said(mixed: Made) -> None:
    script = """
import os, sys, time
import numpy as np
from dfs_deploy import Runtime
def tasks():
    time.sleep(0.2)  # a thread that was joined may still be about to leave the kernel's list
    return len(os.listdir("/proc/self/task"))
images = np.arange(20 * 8 * 8 * 3, dtype=np.uint8).reshape(20, 8, 8, 3)
Runtime(sys.argv[1]).close()  # what libraries start once
results, before = [], tasks()
for threads in (1, 2, 100):
    with Runtime(sys.argv[1], threads=threads) as net:
        results.append(net(images))
        print(tasks() - before, net.description["threads"], net.description["pools"])
print(results[0] == results[1] == results[2], tasks() - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(mixed.path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    one, two, many, last = ran.stdout.splitlines()
    assert one == "0 1 none: only the calling thread"
    assert two.split()[1] == "2"
    extra, given, *_ = many.split()
    assert 0 < int(extra) <= 384
    assert 1 < int(given) < 100
    assert "100 threads per engine would be too many" in many
    assert last == "True 0"


@pytest.mark.skipif(
    not hasattr(onnxruntime, "set_global_thread_pool_sizes"), reason="this ONNX Runtime has no such pool"
)
def test_one_pool_that_the_application_chose_is_used(mixed: Made) -> None:
    script = """
import os, sys
import numpy as np
import onnxruntime
onnxruntime.set_global_thread_pool_sizes(3, 1)
from dfs_deploy import Runtime
with Runtime(sys.argv[1], threads=2) as net, Runtime(sys.argv[1]) as other:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    print(net.description["pools"], net(images) == other(images))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(mixed.path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("one for the process")
    assert ran.stdout.endswith(" True\n")
