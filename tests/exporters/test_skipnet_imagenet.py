"""SkipNet's ImageNet networks, from state dicts of their key list to bundles that decide as they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import CheckpointFacts
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.exporters import export
from dfs_deploy.runtimes import Runtime
from tests.builders import random_images, save_release, skipnet_imagenet_state_dict
from tests.checkpoints.oracle import GroupsOracle
from tests.settled import pixels

SIZE = (32, 40)
SMALL = CheckpointFacts(input_size=SIZE)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_it_exports_and_runs_as_skipnet_does(tmp_path: Path, bottleneck: bool) -> None:
    state = skipnet_imagenet_state_dict((2, 3, 1, 2), bottleneck, seed=8)
    path = save_release(tmp_path / "net.pth.tar", state)
    save_npz(tmp_path / "x.npz", Dataset(pixels(24, size=SIZE), np.arange(24) % 12, tuple("abcdefghijkl"), "pixels"))
    export(path, tmp_path / "net.dfs", targets="fp32,int8", facts=SMALL, calibration_data=tmp_path / "x.npz")
    images = random_images(12, SIZE)
    with Runtime(tmp_path / "net.dfs") as net:
        result = net(images.numpy())
    oracle = GroupsOracle(state, (0, 32))
    for index, image in enumerate(images):
        logits, taken, _ = oracle.run(image)
        assert result.path[index].tolist() == taken
        largest = float(logits.abs().max())
        np.testing.assert_allclose(result.logits[index], logits.numpy(), rtol=1e-4, atol=1e-4 * largest)
    assert len(np.unique(result.path)) == 2, "both decisions should be met, or this shows little"
    bundle = Bundle(tmp_path / "net.dfs")
    assert bundle.manifest.input.resize == 40
    assert bundle.architecture.name == ("ResNet-26" if bottleneck else "ResNet-18")
