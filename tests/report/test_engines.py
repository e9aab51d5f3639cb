from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.report.data import EngineFigures
from dfs_deploy.report.engines import engine_figures, run_engine, walk
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.backend import running_engines
from dfs_deploy.runtimes.onnxruntime.loading import EngineLoader
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN
from tests.bundles import Made, copied, manifest_of, rewritten, static_bundle
from tests.exporters.test_validation import perturbed


def measured(bundle: Bundle, images: NDArray[np.uint8]) -> tuple[EngineFigures, ...]:
    with Runtime(bundle, plan=False) as runtime:
        return engine_figures(
            bundle,
            runtime.substitutions,
            bundle.input.normalize(images),
            runtime(images).path,
            [block.group for block in bundle.architecture.blocks],
        )


@pytest.fixture(scope="module")
def figures(mixed: Made) -> tuple[EngineFigures, ...]:
    return measured(Bundle(mixed.path), mixed.data.images)


def test_the_features_on_the_way_are_the_runtimes_own(mixed: Made) -> None:
    """The head on what the walk ends with gives the runtime's logits: every engine on the way was the right one."""
    bundle = Bundle(mixed.path)
    images = bundle.input.normalize(mixed.data.images)
    with Runtime(bundle, plan=False) as runtime:
        result, substitutions = runtime(images), runtime.substitutions
    loader, running = EngineLoader(bundle, 1, PLAIN), list(running_engines(bundle, "onnxruntime", substitutions))
    *blocks, (head, last) = walk(bundle, loader, running, images, result.path)
    assert [engines[0].block for engines, _ in blocks] == list(range(1, bundle.architecture.gated_blocks + 1))
    assert {maps.dtype.name for _, features in blocks for maps in features} == {"float32", "uint8"}
    logits = np.stack(run_engine(loader, head[0], last))
    np.testing.assert_allclose(logits, result.logits, rtol=0, atol=1e-4)


def test_every_engine_of_every_option_is_measured(mixed: Made, figures: tuple[EngineFigures, ...]) -> None:
    engines = Bundle(mixed.path).manifest.runtimes["onnxruntime"]
    expected = set()
    for block in engines.blocks:
        if block.skip is not None:
            expected.add((block.index, "skip", block.skip.precision))
        for option, served in block.options.items():
            expected |= {(block.index, option, engine.precision) for engine in served}
    assert {(f.block, f.option, f.precision) for f in figures} == expected
    assert all(f.median_us > 0.0 for f in figures)


def test_the_yardstick_has_no_error_and_int8_has_more_than_fp16(figures: tuple[EngineFigures, ...]) -> None:
    assert all(f.relative_rms_error is None and f.samples == 0 for f in figures if f.precision == "fp32")
    int8 = [f.relative_rms_error for f in figures if f.precision == "int8"]
    fp16 = [f.relative_rms_error for f in figures if f.precision == "fp16"]
    assert all(error is not None and 1e-4 < error < 0.2 for error in int8)
    assert all(error is not None and 0.0 < error < 2e-3 for error in fp16)


def test_one_engine_serves_each_option(figures: tuple[EngineFigures, ...]) -> None:
    for block, option in {(f.block, f.option) for f in figures}:
        assert sum(f.serves for f in figures if (f.block, f.option) == (block, option)) == 1


def test_shares_and_samples_say_where_the_error_was_measured(mixed: Made, figures: tuple[EngineFigures, ...]) -> None:
    count = len(mixed.data.images)
    for f in (f for f in figures if f.samples):
        assert f.measured_on == ("routed" if f.share > 0.0 else "reached")
        assert f.samples == (round(f.share * count) if f.share > 0.0 else count)
    assert {f.measured_on for f in figures} == {"routed", "reached", None}


def test_an_engine_that_went_wrong_is_found_at_its_block(
    mixed: Made, tmp_path: Path, figures: tuple[EngineFigures, ...]
) -> None:
    def more(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(x + 0.5, x.dtype)

    broken = Bundle(_with_engine(mixed, tmp_path, block=2, option="16", precision="fp16", change=more))
    found = {(f.block, f.option, f.precision): f.relative_rms_error for f in measured(broken, mixed.data.images)}
    before = {(f.block, f.option, f.precision): f.relative_rms_error for f in figures}
    worse = {key for key, error in found.items() if error is not None and error > 10.0 * (before[key] or 0.0)}
    assert worse == {(2, "16", "fp16")}


def test_an_engine_that_gives_no_numbers_is_told(mixed: Made, tmp_path: Path) -> None:
    def nothing(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full_like(x, np.inf)

    broken = Bundle(_with_engine(mixed, tmp_path, block=2, option="16", precision="fp16", change=nothing))
    found = [f for f in measured(broken, mixed.data.images) if not f.finite]
    assert [(f.block, f.option, f.precision) for f in found] == [(2, "16", "fp16")]
    assert found[0].relative_rms_error is None
    assert found[0].relative_max_error is None


def _with_engine(
    made: Made,
    folder: Path,
    *,
    block: int,
    option: str,
    precision: str,
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> Path:
    """A copy whose engine of one option of one block has its second convolution's bias changed."""
    bundle = copied(made, folder)
    (blocks,) = [b for b in manifest_of(bundle)["runtimes"]["onnxruntime"]["blocks"] if b["index"] == block]
    (engine,) = [e for e in blocks["options"][option] if e["precision"] == precision]
    changes = {
        name: perturbed(Bundle(bundle).model(name), f"blocks.{block}.norm2_bias", change)
        for name in engine["files"].values()
    }
    return rewritten(bundle, changes)


def test_a_policy_has_figures_for_the_engines_of_its_own_options(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The runtime runs them as one; the report opens them block by block."""
    made = static_bundle(tmp_path_factory)
    bundle = Bundle(made.path)
    found = measured(bundle, made.data.images)
    assert {(each.block, each.option) for each in found} == {(1, "8"), (2, "skip"), (3, "16")}
    assert {each.share for each in found} == {1.0}
    assert all(each.samples == len(made.data.images) for each in found if each.measured_on)
