from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.data import Dataset

Pixels = NDArray[np.uint8]


def pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def dataset(count: int = 6, classes: int = 3) -> Dataset:
    labels = np.arange(count, dtype=np.int64) % classes
    return Dataset(pixels(count, 4, 5, 3), labels, tuple("abcdefghij"[:classes]), "some")


def save_image(path: Path, image: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def class_folder(root: Path, count: int = 2, names: tuple[str, ...] = ("dog", "cat"), size: int = 4) -> Path:
    for number, name in enumerate(names):
        for index in range(count):
            save_image(root / name / f"{index}.png", pixels(size, size, 3, seed=10 * number + index))
    return root


GOOD = {"x": pixels(2, 4, 5, 3), "y": np.array([0, 1])}


def save_clip(path: Path, frames: Pixels) -> Path:
    """Writes (N, H, W, 3) uint8 as a video without loss; FFmpeg's own codec, in the container that the ending says."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "png", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if path.suffix == ".mkv" else "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path
