"""Batches of training images, which depend only on seed, stage and step.

Small data sets are on the device as bytes, and a whole batch is varied there at once. Folders of any size stay on disk:
threads decode what the next batches hold. Nothing here has a state that decides: a run that is resumed at a step, or
split over several processes or threads, sees the batches that a run that never stopped would have seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dfs_deploy.data import AnyImages, Dataset
from dfs_deploy.errors import DataError, InternalError
from dfs_deploy.geometry import Frame
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.training.crops import RandomCrop
from dfs_deploy.training.processes import Processes
from dfs_deploy.training.recipe import RESIZED_CROPS, Augmentation

SHIFT = 4
"""Most pixels by which an image is moved, each way; the new border is black."""

_AHEAD = 2
"""Batches that wait while one is computed on."""


class Images:
    """A data set as the network takes it, its batches on a device.

    Args:
        dataset: images in memory, which are copied to the device, or in a folder.
        contract: the network's input.
        device: device to compute on.
    """

    def __init__(self, dataset: AnyImages, contract: InputContract, device: torch.device) -> None:
        self._dataset = dataset
        self._pixels: Tensor | None = None
        if isinstance(dataset, Dataset):
            self._pixels = torch.from_numpy(np.ascontiguousarray(dataset.images.transpose(0, 3, 1, 2))).to(device)
        self._labels = torch.from_numpy(dataset.labels).to(device)
        self.geometry = contract.geometry
        self.class_names = dataset.class_names
        self.device = device
        self._mean = torch.tensor(contract.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(contract.std, device=device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def in_memory(self) -> bool:
        """Whether all pixels are on the device."""
        return self._pixels is not None

    def take(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, H, W) uint8 and labels (N,) int64 of some rows of images that are in memory."""
        if self._pixels is None:
            raise InternalError("rows of a folder were asked for at random")
        return self._pixels[rows], self._labels[rows]

    def batches(self, size: int, rows: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (n, 3, H, W) uint8 and labels (n,) int64 of rows in order, ``None`` for all, a batch at a time."""
        rows = range(len(self)) if rows is None else rows
        if self._pixels is not None:
            for begin in range(rows.start, rows.stop, size):
                yield self.take(slice(begin, min(begin + size, rows.stop)))
        else:
            for pixels, labels in self._dataset.batches(size, rows):
                yield self._on_device(pixels), torch.from_numpy(labels).to(self.device)

    def framed(self, wanted: Iterator[tuple[int, Frame | None]], count: int) -> Iterator[Tensor]:
        """Pixels (count, 3, H, W) uint8 of rows, each in a frame of its own; without end if the rows are.

        Threads make the next ones while the caller computes.
        """
        with contextlib.closing(self._dataset.framed(wanted, _AHEAD * count)) as made:
            while images := list(itertools.islice(made, count)):
                yield self._on_device(np.stack(images))

    def labels(self, rows: Tensor) -> Tensor:
        """Labels (N,) int64 of some rows."""
        return self._labels[rows.to(self.device)]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Maps (N, 3, H, W) uint8 to float32, channels last in memory, in which convolutions are fast."""
        scaled = (pixels.float() / 255.0 - self._mean) / self._std
        return scaled.contiguous(memory_format=torch.channels_last)

    def _on_device(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)


class Batches:
    """Random batches of training images without end.

    Args:
        images: the training split.
        size: images in a batch, over all processes.
        augmentation: variation of the images.
        seed: seed of order and variation.
        processes: processes that share each batch; ``None`` for this one only.
        crop_area: least share of an image that a random resized crop keeps.

    Raises:
        DataError: fewer images than a batch.
    """

    def __init__(
        self,
        images: Images,
        size: int,
        augmentation: Augmentation,
        seed: int,
        processes: Processes | None = None,
        crop_area: float = 0.08,
    ) -> None:
        if len(images) < size:
            raise DataError(f"{len(images)} training images for batches of {size}, expected more; lower --batch")
        self._images = images
        self._size = size
        self._augmentation = augmentation
        self._seed = seed
        self._share = (processes or Processes()).share(size)
        self._crop_area = crop_area
        self._epoch: tuple[str, int, Tensor] | None = None
        self._next: tuple[str, int, bool] | None = None
        self._ahead: Iterator[Tensor] = iter(())

    def __len__(self) -> int:
        """Batches in an epoch; images that do not fill one are left out, others each time."""
        return len(self._images) // self._size

    def take(self, stage: str, step: int, plain: bool = False) -> tuple[Tensor, Tensor]:
        """This process's share of the batch of a step, from 0: (n, 3, H, W) float32, normalised, and (n,) int64.

        Each stage has its own order; ``plain`` images are left as they are. How an image is cropped from its file
        depends on seed, stage, epoch and the image alone.

        Raises:
            DataError: a file of the batch is damaged or missing.
        """
        rows = self.rows(stage, step)
        cropped = self._augmentation == RESIZED_CROPS and not plain
        if self._images.in_memory and not cropped:
            pixels, labels = self._images.take(rows.to(self._images.device))
        else:
            pixels, labels = self._read_ahead(stage, step, cropped), self._images.labels(rows)
        if not plain and self._augmentation in ("crop", "crop-flip"):
            random = _generator(self._seed, stage, "vary", step)
            shifts = torch.randint(0, 2 * SHIFT + 1, (self._size, 2), generator=random)[self._share]
            flips = torch.rand(self._size, generator=random)[self._share] < 0.5
            pixels = _shift(pixels, shifts.to(pixels.device))
            if self._augmentation == "crop-flip":
                pixels = torch.where(flips.to(pixels.device)[:, None, None, None], pixels.flip(3), pixels)
        return self._images.normalize(pixels), labels

    def _read_ahead(self, stage: str, step: int, cropped: bool) -> Tensor:
        """Pixels of a step, (n, 3, H, W) uint8; those of the steps after it are made meanwhile."""
        if self._next != (stage, step, cropped):
            count = self._share.stop - self._share.start
            self._ahead = self._images.framed(self._wanted(stage, step, cropped), count)
        self._next = None  # in case of an error
        pixels = next(self._ahead)
        self._next = (stage, step + 1, cropped)
        return pixels

    def _wanted(self, stage: str, step: int, cropped: bool) -> Iterator[tuple[int, Frame | None]]:
        """Rows of this and all further steps, each with its crop."""
        for each in itertools.count(step):
            epoch = each // len(self)
            for row in self.rows(stage, each).tolist():
                key = (self._seed, stage, "crop", epoch, row)
                yield row, RandomCrop(self._images.geometry, self._crop_area, key) if cropped else None

    def rows(self, stage: str, step: int) -> Tensor:
        """This process's rows of a step."""
        epoch, index = divmod(step, len(self))
        return self._order(stage, epoch)[index * self._size : (index + 1) * self._size][self._share]

    def _order(self, stage: str, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[:2] != (stage, epoch):
            random = _generator(self._seed, stage, "order", epoch)
            self._epoch = (stage, epoch, torch.randperm(len(self._images), generator=random))
        return self._epoch[2]


def _shift(pixels: Tensor, shifts: Tensor) -> Tensor:
    """Moves each image (N, C, H, W) by its own (N, 2) rows and columns, 0 to 2 * SHIFT."""
    n, _, height, width = pixels.shape
    padded = functional.pad(pixels, (SHIFT, SHIFT, SHIFT, SHIFT)).permute(0, 2, 3, 1)
    index = torch.arange(n, device=pixels.device)[:, None, None]
    down = (shifts[:, :1] + torch.arange(height, device=pixels.device))[:, :, None]
    right = (shifts[:, 1:] + torch.arange(width, device=pixels.device))[:, None, :]
    return padded[index, down, right].permute(0, 3, 1, 2)


def _generator(*key: object) -> torch.Generator:
    """A random stream for each key, the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
