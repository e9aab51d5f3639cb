from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy.bench.traces import engine_files, join_engines, open_trace
from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import MissingExtraError
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.base import Substitution
from tests.bundles import Made, relative
from tests.checks import refuses

PATHS = [[0, 0, 0], [1, 1, 1], [3, 3, 3], [1, 0, 3], [3, 1, 0], [0, 2, 1]]
"""Of skip, 8, 16, full; features change their form between blocks in some."""


def path_of(options: list[int]) -> NDArray[np.uint8]:
    return np.array(options, np.uint8)


@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize("batch", [1, 6])
def test_a_trace_computes_what_the_path_does(mixed: Made, options: list[int], batch: int) -> None:
    images = Bundle(mixed.path).input.normalize(mixed.data.images[:batch])
    with Runtime(mixed.path) as runtime:
        expected = runtime(images, path=np.repeat(path_of(options)[None], batch, 0)).logits
        with open_trace(runtime.bundle, path_of(options), runtime.substitutions) as trace:
            assert relative(trace(images), expected) < 1e-5


def test_a_trace_holds_the_engines_of_the_path_and_no_other(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    engines = bundle.manifest.runtimes["onnxruntime"]
    skips = [block.skip for block in engines.blocks]
    assert [skip is None for skip in skips] == [True, False, True], "one group begins among the gated blocks"
    assert skips[1] is not None
    skipped = [engines.stem.files["float32"], skips[1].files["float32"], engines.head.files["float32"]]
    assert engine_files(bundle, path_of([0, 0, 0])) == skipped
    whole = engine_files(bundle, path_of([1, 1, 1]))
    first, second, third = (block.options["8"][0].files for block in engines.blocks)
    ends = [engines.stem.files["float32"], engines.head.files["uint8"]]
    assert whole == [ends[0], first["float32"], second["uint8"], third["uint8"], ends[1]]


def test_a_trace_follows_what_serves_an_option(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    served = Substitution("8", "int8", "fp32", "slower here than the more precise engine", (1, 2, 3))
    files = engine_files(bundle, path_of([1, 1, 1]), [served])[1:-1]
    blocks = bundle.manifest.runtimes["onnxruntime"].blocks
    fallbacks = [next(each for each in block.options["8"] if each.precision == "fp32") for block in blocks]
    assert files == [engine.files["float32"] for engine in fallbacks]


def test_joining_needs_onnx(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(mixed.path)
    engines = [bundle.read(file) for file in engine_files(bundle, path_of([0, 0, 0]))]
    monkeypatch.setitem(sys.modules, "onnx", None)
    with refuses(MissingExtraError, "onnx", "[bench]"):
        join_engines(engines)
