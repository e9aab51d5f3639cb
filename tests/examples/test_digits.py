"""The shipped checkpoint is what its log says; the script that made it works, and so does the first example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import Checkpoint, load_checkpoint
from dfs_deploy.data.digits import load_digits
from tests.examples.conftest import load_example
from tests.examples.program import EXAMPLES

LOG = json.loads((EXAMPLES / "digits-training.json").read_text())


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


def test_training_starts_and_its_checkpoint_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_example("digits_checkpoint")
    monkeypatch.setattr(script, "load_digits", lambda split: load_digits(split).subset(256, 0))
    recipe = script.Recipe(backbone_epochs=1, gate_epochs=1, joint_epochs=1, settle_epochs=1)
    network, contract, log = script.train(recipe, 0)
    script.save_checkpoint(tmp_path / "digits.pt", network, contract)
    assert load_checkpoint(tmp_path / "digits.pt").network.options == network.options
    assert all(np.isfinite(stage["test_accuracy"]) for stage in log["stages"])


def test_the_first_example_trains_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"backbone_steps": 2, "gate_steps": 2, "joint_steps": 2}
    load_example("01_train_digits").main(["--out", str(tmp_path / "run")], **few)
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before.startswith("top-1 ")
    assert str(tmp_path / "run.dfs") in last
    assert Bundle(tmp_path / "run.dfs").manifest.options[0].name == "skip"
