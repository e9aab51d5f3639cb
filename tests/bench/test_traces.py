from __future__ import annotations

import numpy as np
import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StraightEngine, join_path
from tests.bundles import Made, relative

PATHS = [[0, 0, 0], [1, 1, 1], [3, 1, 0], [0, 2, 1]]
"""Of skip, 8, 16, full; features change their layout between blocks in some."""


@pytest.mark.parametrize(("options", "batch"), list(zip(PATHS, (1, 6, 1, 6), strict=True)), ids=str)
def test_a_trace_computes_what_the_path_does(mixed: Made, options: list[int], batch: int) -> None:
    images, path = Bundle(mixed.path).input.normalize(mixed.data.images[:batch]), np.array(options, np.uint8)
    with Runtime(mixed.path) as runtime:
        expected = runtime(images, path=np.repeat(path[None], batch, 0)).logits
        joined = join_path(runtime.bundle, path, runtime.substitutions)
        with StraightEngine(joined, "the trace of a path", runtime.bundle, 1) as trace:
            assert relative(trace(images), expected) < 1e-5
