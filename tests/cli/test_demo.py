from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dfs_deploy
from dfs_deploy.bundle import Bundle
from dfs_deploy.data import save_npz
from dfs_deploy.data.digit_scenes import load_digit_scenes
from dfs_deploy.runtimes import Runtime
from tests.cli.program import Ran, run

SHIPPED = Path(dfs_deploy.__file__).parent.parent / "examples" / "demo"


shipped = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the package is not run from its source tree")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out = tmp_path_factory.mktemp("demo") / "digits.dfs"
    return run("demo", "--out", out, "--min-seconds", "0.05", "--json")


@shipped
def test_the_demo_runs_the_main_job(demo: Ran) -> None:
    assert (demo.code, demo.err) == (0, "")
    assert demo.json["samples"] == 2000
    assert demo.json["route_agreement"] >= 0.98
    assert demo.json["top1_reference"] - demo.json["top1_bundle"] <= 0.003
    names = {case["name"] for case in demo.json["bench"]["cases"]}
    assert "dfs" in names
    for rival in demo.json["rivals"]:
        assert any(name.startswith("static-") and name.endswith(f"@{Path(rival).stem}") for name in names)
    assert {Path(rival).stem for rival in demo.json["rivals"]} == {
        f"digits-{file.stem}" for file in SHIPPED.glob("*.pt") if file.stem != "dfs"
    }
    accuracy = Bundle(demo.json["bundle"]).manifest.accuracy
    assert accuracy is not None
    assert any(0.02 < share < 0.98 for block in accuracy.option_share for share in block), "the gate varies its choice"


@shipped
def test_the_blocks_that_run_are_counted_by_kind_of_scene(demo: Ran) -> None:
    scenes = load_digit_scenes("test", 4)
    with Runtime(demo.json["bundle"]) as runtime:
        ran = (runtime(scenes.data.images).path > 0).sum(1)
    blocks = demo.json["blocks_run"]
    assert blocks["clear"] == pytest.approx(ran[~scenes.hard].mean())
    assert blocks["hard"] == pytest.approx(ran[scenes.hard].mean())


@shipped
def test_a_batch_of_256_scenes_is_256_batches_of_one(demo: Ran) -> None:
    images = load_digit_scenes("test").data.images[:256]
    with Runtime(demo.json["bundle"]) as runtime:
        together = runtime(images)
        alone = [runtime(image[None]) for image in images]
    assert len(np.unique(together.path, axis=0)) > 1
    assert np.array_equal(np.concatenate([result.path for result in alone]), together.path)
    logits = np.concatenate([result.logits for result in alone])
    np.testing.assert_allclose(logits, together.logits, rtol=0, atol=1e-4)


@shipped
def test_the_demos_bundle_passes_verify_and_runs_on_files(demo: Ran, tmp_path: Path) -> None:
    scenes = load_digit_scenes("test", 4).data
    save_npz(tmp_path / "scenes.npz", scenes)
    bundle = demo.json["bundle"]
    ran = run("verify", bundle, "--checkpoint", SHIPPED / "dfs.pt", "--data", tmp_path / "scenes.npz", "--json")
    assert (ran.code, ran.json["passed"]) == (0, True)
    assert ran.json["route_agreement"] == demo.json["route_agreement"]
    Image.fromarray(scenes.images[0]).save(tmp_path / "digit.png")
    (result,) = run("run", bundle, tmp_path / "digit.png", "--json").json["results"]
    assert result["class_name"] in "0123456789"


@shipped
def test_it_tells_the_verdict_and_where_to_go_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Ran) -> None:
    folder = tmp_path / "few"  # one rival is enough to read the words
    folder.mkdir()
    for name in ("dfs.pt", "static.pt"):
        (folder / name).symlink_to(SHIPPED / name)
    module = importlib.import_module("dfs_deploy.cli.demo")
    monkeypatch.setattr(module, "find_checkpoints", lambda: folder)
    ran = run("demo", "--out", tmp_path / "digits.dfs", "--min-seconds", "0.05")
    assert ran.code == 0
    *_, last = ran.out.splitlines()
    words = " ".join(ran.out.split())
    run_of = demo.json["blocks_run"]
    assert f"it runs {run_of['clear']:.1f} for a clear scene and {run_of['hard']:.1f} for a hard one" in words
    assert "beside it 1 static networks" in words
    assert ("docs/results.md" in words) == ("verdict: ship static" in words or "verdict: ship digits" in words)
    assert last.startswith("next: ")
    assert "inspect" in last


def test_without_its_checkpoints_the_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("dfs_deploy.cli.demo")
    monkeypatch.setattr(module, "CHECKPOINTS", "nowhere")
    ran = run("demo", "--out", tmp_path / "digits.dfs", "--json")
    ran.failed(3, "nowhere")
    assert not list(tmp_path.iterdir())
