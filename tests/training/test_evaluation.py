from __future__ import annotations

import pytest
import torch

from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.data import Images
from dfs_deploy.training.loop import evaluate
from tests.builders import small_network
from tests.training.small import SIZE, colour_patches


def test_the_mode_of_every_module_is_restored_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    network.train()
    network.net.get_submodule("stem_norm").eval()
    modes = {name: module.training for name, module in network.named_modules()}
    contract = InputContract((3, SIZE, SIZE), (0.5,) * 3, (0.25,) * 3)
    images = Images(colour_patches(12), contract, torch.device("cpu"))

    def broken(x: torch.Tensor) -> None:
        assert not network.training
        raise RuntimeError("broken")

    monkeypatch.setattr(network, "route", broken)
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(network, images)
    assert {name: module.training for name, module in network.named_modules()} == modes
