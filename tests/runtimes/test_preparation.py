"""The verb ``prepare`` as a function; the command line's tests hold what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

import dfs_deploy
from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError, UsageError
from dfs_deploy.runtimes.onnxruntime.blocked import block_size
from tests.bundles import Made, copied, wide_bundle
from tests.checks import refuses


def test_a_narrow_bundle_runs_as_it_is(floats: Made, capfd: pytest.CaptureFixture[str]) -> None:
    found = dfs_deploy.prepare(floats.path)
    assert isinstance(found, dfs_deploy.Prepared)
    assert (found.runtime, found.folder, found.made, found.channel_block) == ("onnxruntime", None, False, 1)
    assert found.reason
    assert found == dfs_deploy.prepare(Bundle(floats.path))
    assert capfd.readouterr() == ("", ""), "a library prints nothing"


@pytest.mark.skipif(block_size() == 1, reason="ONNX Runtime has no blocked layout for this CPU")
def test_engines_are_made_once_in_the_folder_that_is_named(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = copied(wide_bundle(tmp_path_factory), tmp_path)
    stages: list[str] = []
    cache = tmp_path / "place"
    first = dfs_deploy.prepare(bundle, cache_dir=cache, progress=lambda stage, share: stages.append(stage))
    assert first.made
    assert first.channel_block == block_size()
    assert first.folder is not None
    assert first.folder.is_relative_to(cache)
    assert any(stage.startswith("preparing") for stage in stages)
    again = dfs_deploy.prepare(bundle, cache_dir=cache)
    assert (again.made, again.folder) == (False, first.folder)


def test_a_wrong_call_is_refused(floats: Made) -> None:
    with refuses(UsageError, "'abacus'", "onnxruntime", "tensorrt"):
        dfs_deploy.prepare(floats.path, runtime="abacus")
    with refuses(UsageError, "batch", "onnxruntime"):
        dfs_deploy.prepare(floats.path, batch=2)
    with refuses(UsageError, "a batch of 0"):
        dfs_deploy.prepare(floats.path, runtime="tensorrt", batch=0)
    with refuses(BundleError, "missing.dfs"):
        dfs_deploy.prepare("missing.dfs")
