"""Count of the decoded images that are in memory at the same time."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import pytest

from dfs_deploy.data import dataset, images
from dfs_deploy.geometry import Frame


class Decoded:
    """Images of folders that were decoded, and how many of them were alive at once.

    Attributes:
        count: images that were decoded.
        most: most of them that were in memory at the same time, outside of batches.
        files: name of each file that was decoded.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.most = self._alive = 0
        self.files: list[str] = []
        self._lock = threading.RLock()  # an image may die while another is counted
        monkeypatch.setattr(dataset, "read_image", self._read)

    def _read(self, path: Path, frame: Frame | None = None) -> images.Decoded:
        read = images.read_image(path, frame)
        with self._lock:
            self.files.append(path.name)
            self.count += 1
            self._alive += 1
            self.most = max(self.most, self._alive)
        weakref.finalize(read.pixels, self._died)
        return read

    def _died(self) -> None:
        with self._lock:
            self._alive -= 1
