from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dfs_deploy.bench.paths import option_shares, time_paths
from dfs_deploy.bench.result import PathLatency, Round
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made


@pytest.fixture(scope="module")
def runtime(mixed: Made) -> Iterator[Runtime]:
    with Runtime(mixed.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(mixed: Made, runtime: Runtime) -> tuple[PathLatency, ...]:
    images = runtime.input.normalize(mixed.data.images)
    taken = np.concatenate([runtime(image[None]).path for image in images])
    return time_paths(runtime, images, taken, size=Round(4, 1), min_s=0.0, min_iterations=20)


def test_the_shares_of_options_by_block() -> None:
    paths = np.array([[0, 1], [0, 2], [2, 2], [0, 2]], np.uint8)
    assert option_shares(paths, 3) == ((0.75, 0.0, 0.25), (0.0, 0.25, 0.75))
    assert option_shares(np.zeros((4, 0), np.uint8), 3) == ()


def test_three_paths_that_inputs_took(found: tuple[PathLatency, ...], mixed: Made, runtime: Runtime) -> None:
    assert [path.kind for path in found] == ["fastest", "commonest", "slowest"]
    taken = [tuple(runtime.options[k].name for k in row) for row in runtime(mixed.data.images).path.tolist()]
    for path in found:
        assert path.inputs == taken.count(path.path) > 0
        assert path.share == path.inputs / len(taken)
        assert path.iterations >= 20
    commonest = found[1]
    assert commonest.inputs == max(map(taken.count, taken))


def test_the_engines_alone_tell_the_fastest_and_the_slowest(found: tuple[PathLatency, ...]) -> None:
    engine_ms = [path.engine_ms for path in found]
    assert engine_ms[0] == min(engine_ms) < max(engine_ms) == engine_ms[2]


def test_a_path_costs_what_it_computes(found: tuple[PathLatency, ...], runtime: Runtime) -> None:
    costs = dict(zip(runtime.options.names, runtime.options.costs, strict=True))
    weights = runtime.bundle.architecture.weights(runtime.options)
    for path in found:
        assert path.computation_percentage == pytest.approx(
            100 * np.average([costs[name] for name in path.path], weights=weights)
        )
