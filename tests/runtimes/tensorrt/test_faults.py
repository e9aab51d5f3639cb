"""Hundreds of failures of the device, each at another call: nothing is left on it, and no answer is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfs_deploy.errors import DfsDeployError, EngineError, EnvironmentLacksError, RuntimeClosedError
from dfs_deploy.runtimes import Result, Runtime
from tests.runtimes.tensorrt.conftest import BATCH
from tests.runtimes.tensorrt.machine import left, machine
from tests.settled import pixels

FAULTS = 400
LOADING = 60
"""Of them with loading; the others in the life of a clone."""


def live(runtime: Runtime, results: list[Result]) -> None:
    """What a clone lives through: single images, a batch larger than the engines take, an end."""
    with runtime.clone() as clone:
        results.append(clone(pixels(1)))
        results.append(clone(pixels(BATCH + 2)))
        results.append(clone(pixels(2)[1:]))


def same(results: list[Result], expected: list[Result]) -> bool:
    return all(
        np.array_equal(a.logits, b.logits) and np.array_equal(a.path, b.path)
        for a, b in zip(results, expected, strict=False)
    )


@pytest.mark.parametrize("integrated", [False, True])
def test_a_failure_leaves_nothing_behind_and_no_wrong_answer(prepared: Path, integrated: bool) -> None:
    faults = (FAULTS - LOADING) // 2
    failed: Counter[str] = Counter()
    with machine(integrated=integrated) as gpu, Runtime(prepared, "tensorrt") as runtime:
        expected: list[Result] = []
        begin = gpu.calls
        live(runtime, expected)
        calls, kept = gpu.calls - begin, left(gpu)
        for at in np.linspace(1, calls, faults).round().astype(int):
            results: list[Result] = []
            gpu.failed, gpu.fail_at = "", gpu.calls + int(at)
            with pytest.raises((EngineError, RuntimeClosedError)) as error:
                live(runtime, results)
            failed[gpu.failed] += 1
            assert gpu.failed
            assert "\n" not in str(error.value)
            assert same(results, expected)
            assert not gpu.violations, gpu.failed
            assert left(gpu) == kept, gpu.failed
        gpu.fail_at = -1
        after: list[Result] = []
        live(runtime, after)
        assert same(after, expected)
    assert len(after) == len(expected)
    assert {"cuMemAlloc", "execute_async_v3", "cuStreamSynchronize", "cuMemFree"} <= set(failed)


def test_a_failure_while_loading_leaves_nothing_behind(prepared: Path) -> None:
    with machine() as gpu:
        with Runtime(prepared, "tensorrt") as runtime:
            expected = runtime(pixels(3))
        calls, failed = gpu.calls, Counter[str]()
        for at in (*range(1, 21), *np.linspace(21, calls, LOADING - 20).round().astype(int)):
            gpu.failed, gpu.fail_at = "", gpu.calls + int(at)
            results: list[Any] = []
            with pytest.raises((EngineError, EnvironmentLacksError)) as error, Runtime(prepared, "tensorrt") as runtime:
                results.append(runtime(pixels(3)))
            failed[gpu.failed] += 1
            assert isinstance(error.value, DfsDeployError)
            assert same(results, [expected])
            assert not gpu.violations, gpu.failed
            assert left(gpu) == {}, gpu.failed
    assert {"cuInit", "cuDevicePrimaryCtxRetain", "deserialize_cuda_engine", "cuCtxPopCurrent"} <= set(failed)
