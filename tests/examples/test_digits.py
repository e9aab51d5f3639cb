"""The example that trains the demo's networks works; what is shipped is what its log says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfs_deploy.checkpoints import Checkpoint, load_checkpoint
from dfs_deploy.data.digit_scenes import load_digit_scenes
from dfs_deploy.data.digits import load_digits
from tests.examples.conftest import load_example
from tests.examples.program import EXAMPLES

LOG = json.loads((EXAMPLES / "digits-training.json").read_text())
SCENES = load_digit_scenes("val", 4)
DEMO = json.loads((EXAMPLES / "demo" / "training.json").read_text())


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(EXAMPLES / "digits.pt")


def test_it_is_small_and_of_our_format(checkpoint: Checkpoint) -> None:
    assert (EXAMPLES / "digits.pt").stat().st_size < 1_000_000
    assert checkpoint.format == "dfs-deploy"
    assert checkpoint.network.options.names == ("skip", "8", "16", "full")


def test_it_decides_as_its_log_says(checkpoint: Checkpoint) -> None:
    test = load_digits("test")
    output = checkpoint.network.route(torch.from_numpy(checkpoint.input.normalize(test.images)))
    path = output.path.numpy()
    right = float(np.mean(output.logits.argmax(1).numpy() == test.labels))
    # A choice at a knife's edge may fall either way on another machine; all but a few may not.
    assert right == pytest.approx(LOG["test"]["accuracy"], abs=0.004)
    for block, counts in enumerate(LOG["test"]["option_counts"]):
        for option, name in enumerate(checkpoint.network.options.names):
            assert int((path[:, block] == option).sum()) == pytest.approx(counts[name], abs=2)


def test_its_gate_truly_varies(checkpoint: Checkpoint) -> None:
    test = load_digits("test")
    path = checkpoint.network.route(torch.from_numpy(checkpoint.input.normalize(test.images))).path.numpy()
    shares = np.stack([(path == option).mean(0) for option in range(4)])
    assert ((shares >= 0.1).sum(0) >= 2).all()
    assert (shares.mean(1) >= 0.1).all()
    assert len(np.unique(path, axis=0)) >= 10


@pytest.mark.parametrize("name", DEMO["results"])
def test_the_demos_networks_are_what_their_log_says(name: str) -> None:
    file = EXAMPLES / "demo" / f"{name}.pt"
    assert file.stat().st_size < 300_000
    shipped, scenes, logged = load_checkpoint(file), SCENES.data, DEMO["results"][name]
    output = shipped.network.route(torch.from_numpy(shipped.input.normalize(scenes.images)))
    assert float(np.mean(output.logits.argmax(1).numpy() == scenes.labels)) == pytest.approx(
        logged["val_top1"], abs=0.006
    )
    cost = 100.0 * float(output.expected_cost.mean())
    assert cost == pytest.approx(logged["computation_percentage"], abs=0.05)


def test_the_first_example_trains_and_writes_what_the_demo_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    script, few_scenes = load_example("01_train_digits"), replace(SCENES, data=SCENES.data.subset(96, 0))
    monkeypatch.setattr(script, "load_digit_scenes", lambda split, copies: few_scenes)
    few = {"backbone_steps": 2, "gate_steps": 2, "joint_steps": 2, "batch": 8, "statistics_batches": 1}
    script.main(["--out", str(tmp_path)], copies=1, **few)
    log = json.loads((tmp_path / "training.json").read_text())["results"]
    assert {file.stem for file in tmp_path.glob("*.pt")} == set(log) == set(DEMO["results"])
    for name, result in log.items():
        network = load_checkpoint(tmp_path / f"{name}.pt").network
        assert (network.policy is None) == (result["policy"] is None)
    assert log["pruned-3"]["policy"].count("skip") == 3
    assert f"wrote {tmp_path / 'dfs.pt'}" in capsys.readouterr().out
