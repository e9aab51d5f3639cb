from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.settled import pixels


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images, one of them in a folder within, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "within").mkdir()
    for name, image in zip(("a.png", "b.png", "within/c.png"), pixels(3), strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder
