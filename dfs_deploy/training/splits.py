"""Images of a training run: which are trained on, which are evaluated on, and how they become the network's input."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.data import AnyImages, Dataset, ImageFolder, open_dataset, splits_of
from dfs_deploy.data.digits import load_digits
from dfs_deploy.data.images import geometry_of
from dfs_deploy.data.labels import draw
from dfs_deploy.errors import DataError
from dfs_deploy.geometry import Geometry
from dfs_deploy.network import Architecture, cifar_resnet
from dfs_deploy.preprocessing import CIFAR10_CLASSES, InputContract, class_names_problem
from dfs_deploy.training.job import Job
from dfs_deploy.training.processes import is_first
from dfs_deploy.training.recipe import RESIZED_CROPS, Augmentation

DIGITS = "digits"
"""Word for scikit-learn's digits, in place of a path."""

HELD_OUT = "held-out"
"""Name of an evaluation split that was taken out of the training split."""

HELD_OUT_SHARE = 0.1
"""Share of the training images that is held out if a data set has no other split."""

MAX_IN_MEMORY = 1 << 28
"""Most bytes of a folder's decoded images that are kept in memory; a larger folder is decoded again in every epoch."""

MEASURED = 1024
"""Images of a folder that the mean and the deviation of its pixels are measured on."""

_EVALUATED = ("test", "val")
"""Splits to evaluate on if none is asked for; the first that is there."""

_LOOKED_AT = 64
_MEASURED_AT_ONCE = 32

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
        geometry: how images become the network's input; ``None`` if they have its size already.
    """

    train: AnyImages
    evaluation: AnyImages
    evaluation_name: str
    classes: int
    geometry: Geometry | None = None

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
            "image size": list(self.train.image_size),
            "training images": len(self.train),
            f"{self.evaluation_name} images": len(self.evaluation),
            "labels": labels.hexdigest()[:16],
        }

    def architecture(self, blocks_per_group: int) -> Architecture:
        """ResNet-(6n+2) for the classes and the image size of these data (He et al. 2016, Section 4.2)."""
        return cifar_resnet((blocks_per_group,) * 3, classes=self.classes, image_shape=(3, *self.train.image_size))

    def contract(self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> InputContract:
        """The network's input.

        Args:
            mean: mean per channel; ``None`` for CIFAR-10's usual one if the classes are CIFAR-10's, else for that of
                the training images; of ``MEASURED`` of them if they are not in memory.
            std: standard deviation per channel, likewise.
        """
        names, shape = self.train.class_names, (3, *self.train.image_size)
        usual = InputContract(shape, class_names=names)
        if self.geometry is not None:
            usual = replace(usual, resize=self.geometry.resize, interpolation=self.geometry.interpolation)
        if mean is None or std is None:
            own = (usual.mean, usual.std) if names == CIFAR10_CLASSES else _measured(self.train)
            mean, std = mean or own[0], std or own[1]
        return replace(usual, mean=mean, std=std)


def _measured(train: AnyImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, rounded to four digits."""
    if isinstance(train, Dataset):
        pixels = train.images.reshape(-1, 3)
        mean, std = pixels.mean(0, dtype=np.float64), pixels.std(0, dtype=np.float64)
    else:
        rows = draw(len(train), MEASURED, 0)
        counts = np.zeros((3, 256), np.int64)
        for images, _ in train.batches(_MEASURED_AT_ONCE, rows):
            counts += [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
        share = counts / counts.sum(1, keepdims=True)
        mean = share @ np.arange(256.0)
        std = np.sqrt((share * (np.arange(256.0) - mean[:, None]) ** 2).sum(1))
    mean, std = mean / 255.0, np.maximum(std / 255.0, 1e-3)
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def load_splits(
    data: str,
    size: tuple[int, int] | Geometry | None = None,
    held_out: int | None = None,
    seed: int = 0,
    evaluate_on: str | None = None,
    cropped: bool = False,
) -> Splits:
    """Loads the images to train and to evaluate on; what is chosen is logged before an image is decoded.

    A folder whose images take no more than ``MAX_IN_MEMORY`` is read into memory; a larger one stays on disk.

    Args:
        data: ``digits``, or a path that ``dfs_deploy.load_dataset`` reads.
        size: height and width to resize images to, or a geometry, which may crop as well; ``None`` for their own.
        held_out: number of training images, drawn and taken out, to evaluate on; ``None`` for a split of its own, or a
            tenth of the images if the data have none.
        seed: seed of the draw of the images that are held out.
        evaluate_on: name of the split to evaluate on, or ``held-out`` for a tenth of the training images whatever
            splits there are; ``None`` for ``test``, else ``val``.
        cropped: whether random crops of the training images are wanted, so that those of a folder stay in their files.

    Raises:
        DataError: the data cannot be read, are of one class, have too few images, or splits that do not fit together.
    """
    evaluation, chosen = _choose_split(data, held_out, evaluate_on)
    geometry = geometry_of(size)
    train = _open(data, "train", geometry)
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
        other = _open(data, evaluation, geometry).labelled_for(classes, train.class_names)
        if other.image_size != train.image_size:
            seen, wanted = ("x".join(map(str, each.image_size)) for each in (other, train))
            raise DataError(
                f"{other.name} has images of {seen}, {train.name} of {wanted}, expected one size; give the size to"
                f" resize to, as in --size {wanted}"
            )
        return Splits(train if cropped else _in_memory(train), _in_memory(other), evaluation, classes, geometry)
    count = max(1, int(len(train) * HELD_OUT_SHARE)) if held_out is None else held_out
    if not 0 < count < len(train):
        raise DataError(f"{count} of {len(train)} images held out, expected at least 1, and some left to train on")
    shuffled = (train if cropped else _in_memory(train)).subset(None, seed)
    kept, other = shuffled.select(slice(count, None)), shuffled.select(slice(count))
    return Splits(kept, _in_memory(other), HELD_OUT, classes, geometry)


def _in_memory(images: AnyImages) -> AnyImages:
    """Small data sets in memory, and large ones as they are."""
    return images.load() if len(images) * 3 * math.prod(images.image_size) <= MAX_IN_MEMORY else images


def splits_for(job: Job) -> Splits:
    """The images of a job; see ``load_splits``."""
    cropped = job.recipe.augmentation == RESIZED_CROPS
    return load_splits(job.data, job.geometry, job.held_out, job.seed, job.evaluate_on, cropped)


def usual_augmentation(data: str, size: tuple[int, int] | Geometry | None) -> Augmentation | None:
    """The variation that suits some data; ``None`` for the recipe's own.

    Digits are not mirrored. A folder of images that are larger than the network's input gets random resized crops, if
    that holds for most of up to 64 of its training images; those that are damaged have no say.

    Args:
        data: ``digits``, or the path of a data set.
        size: as for ``load_splits``.

    Raises:
        DataError: the folder cannot be read.
    """
    if is_digits(data):
        return "crop"
    geometry = geometry_of(size)
    if geometry is None or not Path(data).is_dir():
        return None
    opened = _open(data, "train", geometry)
    if not isinstance(opened, ImageFolder):
        return None
    sizes = _file_sizes(opened.subset(_LOOKED_AT, 0))
    larger = (sizes >= geometry.size).all(1) & (sizes > geometry.size).any(1)
    return RESIZED_CROPS if 2 * int(larger.sum()) > len(sizes) else None


def _file_sizes(images: ImageFolder) -> NDArray[np.int64]:
    """(N, 2) heights and widths of the images whose headers can be read; who needs another one's pixels names it."""
    sizes = []
    for index in range(len(images)):
        with contextlib.suppress(DataError):
            sizes.append(images.file_size(index))
    return np.array(sizes, np.int64).reshape(-1, 2)


def usual_resize(size: tuple[int, int]) -> int:
    """Length of an image's shorter side before its centre is cut out: 256 for 224x224, and in proportion for others."""
    return round(max(size) * 8 / 7)


def _choose_split(data: str, held_out: int | None, evaluate_on: str | None) -> tuple[str | None, str]:
    """Name of the split to evaluate on, ``None`` for images held out of the training split; and the choice in words."""
    there: tuple[str, ...] = ("train", "test") if is_digits(data) else splits_of(data)
    if there and "train" not in there:
        raise DataError(f"{data} holds {', '.join(there)} and no train; give the data to train on")
    others = [name for name in there if name != "train"]
    if evaluate_on not in (None, HELD_OUT, *others):
        seen = f"no split {evaluate_on!r} to evaluate on in {data}"
        remedy = f"it has {', '.join(others)}" if others else "it has no other than the one to train on: use --held-out"
        raise DataError(f"{seen}, {remedy}")
    chosen = evaluate_on or next((name for name in _EVALUATED if name in others), None)
    if held_out is not None or evaluate_on == HELD_OUT:
        chosen = None
    evaluated = f"{'a tenth of the images' if held_out is None else f'{held_out} images'} held out of them"
    if chosen is not None:
        left = [name for name in others if name != chosen]
        evaluated = f"split {chosen}"
        evaluated += f" (also there: {', '.join(left)}; --evaluate-on {left[0]})" if left else ""
    train = f"split train of {data}" if there else f"all images of {data}"
    return chosen, f"{train}, evaluating on {evaluated}"


def _open(data: str, split: str, geometry: Geometry | None) -> AnyImages:
    if not is_digits(data):
        return open_dataset(data, split, geometry)
    digits = load_digits("train" if split == "train" else "test")
    if geometry is None or geometry.size == digits.image_size:
        return digits
    return replace(digits, images=np.stack([geometry(image) for image in digits.images]))
