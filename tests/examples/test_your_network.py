from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.data.digits import load_digits
from tests.examples.program import EXAMPLES, run_example


def test_a_network_of_ones_own_goes_from_a_folder_of_images_to_a_running_one(tmp_path: Path) -> None:
    for split, count in (("train", 128), ("test", 40)):
        data = load_digits(split).subset(count, 0)
        for number, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
            file = tmp_path / "photos" / split / data.class_names[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    ran = run_example("06_your_network.py", "photos", "6", cwd=tmp_path)
    assert re.search(r"^top-1 \d+\.\d+% at \d\.\d % computation$", ran.stdout, re.MULTILINE)
    bundle = Bundle(tmp_path / "your-network.dfs")
    assert bundle.options.names == ("skip", "8")
    assert bundle.input.shape == (3, 64, 64)


def test_it_is_short() -> None:
    assert len((EXAMPLES / "06_your_network.py").read_text().splitlines()) < 40
