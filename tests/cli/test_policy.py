"""A network with a static policy, from export to bench, as a user goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import save_npz
from dfs_deploy.runtimes import Runtime
from tests.bundles import CONTRACT, labelled, run_model, settled_network
from tests.cli.program import run

QUICK = ["--min-seconds", "0.01", "--min-iterations", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose policy is 8, skip, 16; its data, its bundle, and the single file."""
    folder = tmp_path_factory.mktemp("policy")
    static = settled_network().with_policy([1, 0, 2])
    save_checkpoint(folder / "net.pt", static, CONTRACT)
    save_npz(folder / "data.npz", labelled(static))
    made = [
        "--calibration-data",
        folder / "data.npz",
        "--out",
        folder / "net.dfs",
        "--single-file",
        folder / "net.onnx",
    ]
    ran = run("export", folder / "net.pt", *made, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["passed"] is True
    assert ran.json["accuracy"]["route_agreement"] == 1.0
    return folder


def test_verify_compares_it_with_its_reference(folder: Path) -> None:
    ran = run("verify", folder / "net.dfs", "--checkpoint", folder / "net.pt", "--data", folder / "data.npz", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["route_agreement"] == 1.0
    assert ran.json["computation_percentage_bundle"] == pytest.approx(100 * (1 / 16 + 1 / 4) / 3)


def test_another_policy_is_another_network(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pt", settled_network().with_policy([1, 1, 2]), CONTRACT)
    data = ["--data", folder / "data.npz"]
    ran = run("verify", folder / "net.dfs", "--checkpoint", tmp_path / "other.pt", *data)
    ran.failed(4, "8,8,16", "expected 8,skip,16")


def test_inspect_shows_it(folder: Path) -> None:
    assert "8, skip, 16: static" in run("inspect", folder / "net.dfs").out
    assert run("inspect", folder / "net.dfs", "--json").json["manifest"]["policy"] == ["8", "skip", "16"]


def test_bench_times_it_and_costs_are_refused(folder: Path, tmp_path: Path) -> None:
    ran = run("bench", folder / "net.dfs", *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert {"dfs", "static-fp32", "static-int8"} <= {case["name"] for case in ran.json["cases"]}
    ran = run("bench", folder / "net.dfs", "--save-costs", tmp_path / "a.json", *QUICK, "--json")
    ran.failed(2, "static policy", "gate")


def test_every_way_to_run_it_agrees(folder: Path) -> None:
    with np.load(folder / "data.npz") as data:
        images = data["x"][:8]
    model = (folder / "net.onnx").read_bytes()
    with Runtime(folder / "net.dfs", plan=False) as runtime:
        together = runtime(images)
        for index in range(len(images)):
            alone = runtime(images[index : index + 1])
            assert np.array_equal(alone.logits[0], together.logits[index])
            logits, path = run_model(model, images=CONTRACT.normalize(images[index : index + 1]))
            assert path.tolist() == [[1, 0, 2]] == alone.path.tolist()
            np.testing.assert_allclose(logits, alone.logits, rtol=1e-3, atol=1e-3)
