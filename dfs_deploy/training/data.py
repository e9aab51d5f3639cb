"""Training data on the device: batches that depend only on seed, stage and step, augmented all at once.

Nothing here has a state that advances: a run that is resumed at a step, or split over several processes, sees the
batches that a run that never stopped would have seen.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dfs_deploy.data import Dataset, ImageFolder, open_dataset, splits_of
from dfs_deploy.data.digits import load_digits
from dfs_deploy.data.images import resize
from dfs_deploy.errors import DataError
from dfs_deploy.network import Architecture, cifar_resnet
from dfs_deploy.preprocessing import CIFAR10_CLASSES, InputContract, class_names_problem
from dfs_deploy.training.processes import Processes, is_first
from dfs_deploy.training.recipe import Augmentation

DIGITS = "digits"
"""Word for scikit-learn's digits, in place of a path."""

HELD_OUT = "held-out"
"""Name of an evaluation split that was taken out of the training split."""

HELD_OUT_SHARE = 0.1
"""Share of the training images that is held out if a data set has no other split."""

_EVALUATED = ("test", "val")
"""Splits to evaluate on if none is asked for; the first that is there."""

SHIFT = 4
"""Most pixels by which an image is moved, each way; the new border is black."""

_LOG = logging.getLogger(__name__)


def is_digits(data: str) -> bool:
    """Whether the word for scikit-learn's digits is meant, and not a file or folder of that name."""
    return data == DIGITS and not Path(data).exists()


@dataclass(frozen=True)
class Splits:
    """Images to train and to evaluate a network on.

    Attributes:
        train: the training images.
        evaluation: other images.
        evaluation_name: ``test`` or ``val``, or ``held-out`` for images taken out of the training split.
        classes: number of classes.
    """

    train: Dataset
    evaluation: Dataset
    evaluation_name: str
    classes: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Assumptions about the data, and oddities that may be intended; one line each."""
        notes = [*self.train.notes, *self.evaluation.notes]
        empty = np.flatnonzero(np.bincount(self.train.labels, minlength=self.classes) == 0)
        if len(empty):
            names = self.train.class_names
            some = [names[index] if names else str(index) for index in empty[:3]] + ["..."] * (len(empty) > 3)
            notes.append(
                f"{len(empty)} of {self.classes} classes have no training image ({', '.join(some)}); the network cannot"
                " learn them"
            )
        return tuple(dict.fromkeys(notes))

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that tell these data from others on every machine: pixels are left out, as decoders differ."""
        labels = hashlib.sha256(self.train.labels.tobytes() + self.evaluation.labels.tobytes())
        return {
            "class names": list(self.train.class_names),
            "classes": self.classes,
            "image size": list(self.train.images.shape[1:3]),
            "training images": len(self.train),
            f"{self.evaluation_name} images": len(self.evaluation),
            "labels": labels.hexdigest()[:16],
        }

    def architecture(self, blocks_per_group: int) -> Architecture:
        """ResNet-(6n+2) for the classes and the image size of these data (He et al. 2016, Section 4.2)."""
        return cifar_resnet((blocks_per_group,) * 3, classes=self.classes, image_shape=self.contract().shape)

    def contract(self) -> InputContract:
        """The normalisation that the training split asks for; CIFAR-10's usual one if its classes are CIFAR-10's."""
        names = self.train.class_names
        shape = (3, *self.train.images.shape[1:3])
        if names == CIFAR10_CLASSES:
            return InputContract(shape=shape, class_names=names)
        pixels = self.train.images.reshape(-1, 3)
        mean = pixels.mean(0, dtype=np.float64) / 255.0
        std = np.maximum(pixels.std(0, dtype=np.float64) / 255.0, 1e-3)
        return InputContract(shape, tuple(mean.round(4).tolist()), tuple(std.round(4).tolist()), names)


def load_splits(
    data: str,
    size: tuple[int, int] | None = None,
    held_out: int | None = None,
    seed: int = 0,
    evaluate_on: str | None = None,
) -> Splits:
    """Loads the images to train and to evaluate on; what is chosen is logged before an image is decoded.

    Args:
        data: ``digits``, or a path that ``dfs_deploy.load_dataset`` reads.
        size: height and width to resize images to; ``None`` for their own.
        held_out: number of training images, drawn and taken out, to evaluate on; ``None`` for a split of its own, or a
            tenth of the images if the data have none.
        seed: seed of the draw of the images that are held out.
        evaluate_on: name of the split to evaluate on; ``None`` for ``test``, else ``val``.

    Raises:
        DataError: the data cannot be read, are of one class, have too few images, or splits that do not fit together.
    """
    evaluation, chosen = _choose_split(data, held_out, evaluate_on)
    train = _open(data, "train", size)
    if len(set(train.labels.tolist())) < 2:
        raise DataError(f"{train.name} has images of one class only, expected at least 2; add the other classes")
    if problem := class_names_problem(train.class_names):
        raise DataError(f"{train.name}: {problem}")
    classes = len(train.class_names) or int(train.labels.max()) + 1
    if not train.class_names and classes > len(train):
        raise DataError(
            f"{train.name} has label {classes - 1} and {len(train)} images, expected labels from 0 on with images of"
            " every class; number the classes without gaps"
        )
    if is_first():
        _LOG.info("training on %s", chosen)
    if evaluation is not None:
        # Of a folder, nothing was decoded until here.
        opened = _open(data, evaluation, size).labelled_for(classes, train.class_names)
        images, test = train.load(), opened.load()
        if test.images.shape[1:] != images.images.shape[1:]:
            raise DataError(
                f"{test.name} has images of {_pixels(test)}, {images.name} of {_pixels(images)}, expected one size;"
                f" give the size to resize to, as in --size {_pixels(images)}"
            )
        return Splits(images, test, evaluation, classes)
    count = max(1, int(len(train) * HELD_OUT_SHARE)) if held_out is None else held_out
    if not 0 < count < len(train):
        raise DataError(f"{count} of {len(train)} images held out, expected at least 1, and some left to train on")
    shuffled = train.load().subset(None, seed)
    parts = [
        replace(shuffled, images=shuffled.images[rows], labels=shuffled.labels[rows])
        for rows in (slice(count, None), slice(None, count))
    ]
    return Splits(parts[0], parts[1], HELD_OUT, classes)


def _choose_split(data: str, held_out: int | None, evaluate_on: str | None) -> tuple[str | None, str]:
    """Name of the split to evaluate on, ``None`` for images held out of the training split; and the choice in words."""
    there: tuple[str, ...] = ("train", "test") if is_digits(data) else splits_of(data)
    if there and "train" not in there:
        raise DataError(f"{data} holds {', '.join(there)} and no train; give the data to train on")
    others = [name for name in there if name != "train"]
    if evaluate_on is not None and evaluate_on not in others:
        seen = f"no split {evaluate_on!r} to evaluate on in {data}"
        remedy = f"it has {', '.join(others)}" if others else "it has no other than the one to train on: use --held-out"
        raise DataError(f"{seen}, {remedy}")
    chosen = evaluate_on or next((name for name in _EVALUATED if name in others), None)
    if held_out is not None:
        chosen = None
    evaluated = f"{'a tenth of the images' if held_out is None else f'{held_out} images'} held out of them"
    if chosen is not None:
        left = [name for name in others if name != chosen]
        evaluated = f"split {chosen}"
        evaluated += f" (also there: {', '.join(left)}; --evaluate-on {left[0]})" if left else ""
    train = f"split train of {data}" if there else f"all images of {data}"
    return chosen, f"{train}, evaluating on {evaluated}"


def _open(data: str, split: str, size: tuple[int, int] | None) -> Dataset | ImageFolder:
    if not is_digits(data):
        return open_dataset(data, split, size)
    digits = load_digits("train" if split == "train" else "test")
    if size is None:
        return digits
    return replace(digits, images=np.stack([resize(image, size) for image in digits.images]))


def _pixels(dataset: Dataset) -> str:
    return "x".join(map(str, dataset.images.shape[1:3]))


class Images:
    """A data set on a device, as the network takes it: as bytes until a batch is taken."""

    def __init__(self, dataset: Dataset, contract: InputContract, device: torch.device) -> None:
        self._pixels = torch.from_numpy(np.ascontiguousarray(dataset.images.transpose(0, 3, 1, 2))).to(device)
        self._labels = torch.from_numpy(dataset.labels).to(device)
        self.class_names = dataset.class_names
        self.device = device
        self._mean = torch.tensor(contract.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(contract.std, device=device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, H, W) uint8 and labels (N,) int64 of some rows."""
        return self._pixels[rows], self._labels[rows]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Maps (N, 3, H, W) uint8 to float32, channels last in memory, in which convolutions are fast."""
        scaled = (pixels.float() / 255.0 - self._mean) / self._std
        return scaled.contiguous(memory_format=torch.channels_last)


class Batches:
    """Random batches of training images without end.

    Args:
        images: the training split.
        size: images in a batch, over all processes.
        augmentation: variation of the images.
        seed: seed of order and variation.
        processes: processes that share each batch; ``None`` for this one only.

    Raises:
        DataError: fewer images than a batch.
    """

    def __init__(
        self, images: Images, size: int, augmentation: Augmentation, seed: int, processes: Processes | None = None
    ) -> None:
        if len(images) < size:
            raise DataError(f"{len(images)} training images for batches of {size}, expected more; lower --batch")
        self._images = images
        self._size = size
        self._augmentation = augmentation
        self._seed = seed
        self._share = (processes or Processes()).share(size)
        self._epoch: tuple[str, int, Tensor] | None = None

    def __len__(self) -> int:
        """Batches in an epoch; images that do not fill one are left out, others each time."""
        return len(self._images) // self._size

    def take(self, stage: str, step: int, plain: bool = False) -> tuple[Tensor, Tensor]:
        """This process's share of the batch of a step, from 0: (n, 3, H, W) float32, normalised, and (n,) int64.

        Each stage has its own order; ``plain`` images are left as they are.
        """
        epoch, index = divmod(step, len(self))
        rows = self._order(stage, epoch)[index * self._size : (index + 1) * self._size][self._share]
        pixels, labels = self._images.take(rows.to(self._images.device))
        if not plain and self._augmentation != "none":
            random = _generator(self._seed, stage, "vary", step)
            shifts = torch.randint(0, 2 * SHIFT + 1, (self._size, 2), generator=random)[self._share]
            flips = torch.rand(self._size, generator=random)[self._share] < 0.5
            pixels = _shift(pixels, shifts.to(pixels.device))
            if self._augmentation == "crop-flip":
                pixels = torch.where(flips.to(pixels.device)[:, None, None, None], pixels.flip(3), pixels)
        return self._images.normalize(pixels), labels

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
