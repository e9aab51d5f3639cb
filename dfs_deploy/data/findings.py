"""Findings while images are read: other sizes, and content that is probably a mistake."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.geometry import Geometry

_LOOKED_AT = 512
"""Images that are inspected for mistakes which affect the whole data set."""


class Findings:
    """Counts over the images of a data set that were read so far, each counted once.

    Args:
        total: number of images of the data set.
        geometry: the geometry that the images are brought to; ``None`` if they keep their own size.
    """

    def __init__(self, total: int, geometry: Geometry | None) -> None:
        self._geometry = geometry
        self._every = -(-total // _LOOKED_AT)
        self._seen = np.zeros(total, np.bool_)
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._unread = 0
        self._inspected = self._blank = self._greatest = 0
        self._first: NDArray[np.uint8] | None = None
        self._equal = True

    def add(self, index: int, pixels: NDArray[np.uint8], size: tuple[int, int], unread: bool = False) -> None:
        """Counts an image.

        Args:
            index: index of the image in the data set.
            pixels: (H, W, C) uint8.
            size: height and width in its file.
            unread: whether its EXIF data are unreadable.
        """
        if self._seen[index]:
            return
        self._seen[index] = True
        self._sizes[size] += 1
        self._unread += unread
        if index % self._every:
            return
        if self._first is None:
            self._first = pixels.copy()
        self._inspected += 1
        self._blank += bool((pixels == pixels[:1, :1]).all())
        self._greatest = max(self._greatest, int(pixels.max()))
        self._equal = self._equal and np.array_equal(pixels, self._first)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each finding."""
        unread = f"{self._unread:,} of {self._sizes.total():,} images have unreadable EXIF data"
        return (
            *self._resized(),
            *([f"{unread}; their orientation was not changed"] if self._unread else []),
            *self._suspicious(),
        )

    def _resized(self) -> list[str]:
        """A note that images were squeezed to another size; none if they are cropped, as photographs should be."""
        if self._geometry is None or self._geometry.resize is not None:
            return []
        size = self._geometry.size
        others = Counter({own: count for own, count in self._sizes.items() if own != size})
        if not others:
            return []
        (most, _), more = others.most_common(1)[0], len(others) - 1
        seen = f"of {in_pixels(most)}" + (f" and {more} other size{'s' if more > 1 else ''}" if more else "")
        return [
            f"{others.total():,} of {self._sizes.total():,} images were resized to {in_pixels(size)}: they are {seen}"
        ]

    def _suspicious(self) -> list[str]:
        """A note on what seems wrong with the images: blank, all equal, or scaled to 0..1."""
        count = self._inspected
        if not count:
            return []
        if 2 * self._blank >= count:
            return [f"{self._blank:,} of {count:,} inspected images have a single colour: is this the right data?"]
        if self._greatest <= 1:
            return ["no pixel is greater than 1: were pixels scaled to 0..1 before the cast to uint8?"]
        if count > 1 and self._equal:
            return [f"all {count:,} inspected images are equal: is this the right data?"]
        return []


def in_pixels(size: tuple[int, ...]) -> str:
    """Height and width in words."""
    return f"{size[0]}x{size[1]}"
