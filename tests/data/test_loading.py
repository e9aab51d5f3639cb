from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfs_deploy.data import list_images, load_dataset, load_image
from dfs_deploy.errors import DataError
from tests.checks import refuses
from tests.data.pictures import GOOD, class_folder, pixels, save_image


def test_arrays_are_resized_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **GOOD)
    read = load_dataset(tmp_path / "data.npz", size=(8, 6))
    for image, original in zip(read.images, GOOD["x"], strict=True):
        np.testing.assert_array_equal(image, Image.fromarray(original).resize((6, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_dataset(tmp_path / "data.npz", size=(4, 5)).images, GOOD["x"])


@pytest.mark.parametrize("size", [(0, 4), (4,)])
def test_impossible_sizes_are_refused(tmp_path: Path, size: Any) -> None:
    np.savez(tmp_path / "data.npz", **GOOD)
    with refuses(DataError, "size"):
        load_dataset(tmp_path / "data.npz", size=size)
    with refuses(DataError, "size"):
        load_image(save_image(tmp_path / "1.png", pixels(4, 4, 3)), size)


def test_another_split_is_refused(tmp_path: Path) -> None:
    with refuses(DataError, "'dev'", "train, val, test"):
        load_dataset(class_folder(tmp_path), "dev")


def test_a_path_longer_than_any_is_refused() -> None:
    for load in (load_dataset, load_image, list_images):
        with refuses(DataError):
            load("a" * 5000)


def test_reading_arrays_needs_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, dfs_deploy.data; "
        "print([name for name in ('torch', 'PIL', 'onnxruntime', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
