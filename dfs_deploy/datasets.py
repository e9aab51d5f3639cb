"""Labelled images from disk, without PyTorch.

What a path holds is told by content: an ``.npz`` of ``x`` and ``y``, a folder of images by class, or the folder of an
unpacked CIFAR-10 or CIFAR-100 archive (python or binary version). Nothing in a file is executed: object arrays are
refused, and the pickles of CIFAR's python version are read with inert stand-ins for the few NumPy names they use.
"""

from __future__ import annotations

import functools
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.errors import DataError
from dfs_deploy.files import whole_file

Split = Literal["train", "test"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
"""Endings, in any case, of the files that a folder is searched for."""

# Only decoders that work in this process: Pillow would hand an EPS file, whatever its name, to Ghostscript.
_DECODERS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")

_SPLITS: tuple[Split, ...] = ("train", "test")

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and the class of each.

    Attributes:
        images: (N, H, W, 3) uint8, RGB; N is at least 1.
        labels: (N,) int64, from 0 on.
        class_names: a name a class, or empty where none are known.
        name: what reports call it.

    Raises:
        DataError: an array of another shape or dtype, a label that is negative or has no name.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise DataError(
                f"images of {self.name}: {_describe(images)}, expected (N, H, W, 3) uint8 with N at least 1;"
                f" {_image_remedy(images)}"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels of {self.name}: {_describe(labels)}, expected ({len(images)},) int64, one an image;"
                " give each image its label"
            )
        if labels.min() < 0:
            raise DataError(
                f"labels of {self.name}: {labels.min()} for image {labels.argmin()}, expected classes from 0 on;"
                " leave out images without a class"
            )
        if self.class_names and labels.max() >= len(self.class_names):
            raise DataError(
                f"labels of {self.name}: {labels.max()} for image {labels.argmax()}, expected less than"
                f" {len(self.class_names)}, the number of class names; give every class a name"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def labelled_for(self, classes: int, class_names: Sequence[str]) -> Dataset:
        """The same images with labels that count as a network does.

        Args:
            classes: of the network.
            class_names: of the network, or empty where none are known. Where both sides have names, they decide.

        Raises:
            DataError: a class that the network does not know.
        """
        labels = self.labels
        if self.class_names and class_names and self.class_names != tuple(class_names):
            position = {name: i for i, name in enumerate(class_names)}
            unknown = [name for name in self.class_names if name not in position]
            if unknown:
                raise DataError(
                    f"{self.name} has a class {unknown[0]!r} that the network does not know ({', '.join(class_names)});"
                    " name the classes as the network does"
                )
            labels = np.array([position[name] for name in self.class_names], np.int64)[labels]
        if labels.max() >= classes:
            raise DataError(
                f"{self.name} has label {labels.max()}, the network has {classes} classes, from 0; give its own data"
            )
        names = tuple(class_names) if class_names else self.class_names
        return Dataset(self.images, labels, names, self.name)

    def subset(self, count: int | None, seed: int) -> Dataset:
        """Draws images at random without replacement.

        With one seed, a smaller subset is the beginning of a larger one.

        Args:
            count: how many; ``None``, or more than there are, for all, in an order that the seed decides.
            seed: 0 or above.

        Returns:
            The images drawn, in the order in which they were.

        Raises:
            DataError: a count below 1, or a negative seed.
        """
        if count is not None and count < 1:
            raise DataError(f"a subset of {count} images, expected at least 1; leave the count out for all")
        if seed < 0:
            raise DataError(f"seed {seed}, expected 0 or above")
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return Dataset(self.images[chosen], self.labels[chosen], self.class_names, self.name)


def _no_os_error(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turns what the file system refuses anywhere in a call into a DataError."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            where = error.filename or "a file"
            raise DataError(f"cannot read {where} ({_cause(error)}); check that it is there and may be read") from error

    return wrapped


@_no_os_error
def load_dataset(path: str | Path, split: str | None = None, size: tuple[int, int] | None = None) -> Dataset:
    """Reads labelled images, telling by content what kind of data set the path holds.

    One of:

    - An ``.npz`` with ``x`` (N, H, W, 3) uint8 and ``y`` (N,) integer, where ``split`` does not matter; or with
      ``train_x``, ``train_y``, ``test_x`` and ``test_y``. ``class_names``, where present, names the classes.
    - A folder of images by class, ``CLASS/*.png`` and the like, classes numbered by sorted name; also with such folders
      under ``train/`` and ``test/``. Files of other kinds and hidden entries are ignored. A symbolic link that
      leads outside the folder is refused, so that an unpacked archive cannot read what was not in it.
    - The folder of a CIFAR-10 or CIFAR-100 archive, python or binary version. CIFAR-100 gives its 100 fine labels.

    Args:
        path: a file or folder.
        split: ``train`` or ``test``, where there are both; ``None`` for ``test``.
        size: height and width in pixels; images of another size are resized, bilinearly. ``None`` for their own, which
            must then be the same for all.

    Returns:
        The images, in the order of the file; in a folder by class, then by file name.

    Raises:
        DataError: nothing of these is there, or it is malformed; the message says where and what to do.
    """
    path = Path(path)
    if split is not None and split not in _SPLITS:
        raise DataError(f"split {split!r}, expected 'train' or 'test'")
    _check_size(size)
    chosen: Split = "train" if split == "train" else "test"
    if path.is_file():
        return _resized(_load_npz(path, chosen), size)
    if not path.is_dir():
        raise DataError(
            f"no data set at {path}; give an .npz with x and y, a folder of images by class, or that of a CIFAR archive"
        )
    entries = _entries(path)
    for archive in _CIFAR_ARCHIVES:
        if archive.matches(entries):
            return _resized(_load_cifar(archive, path, entries, chosen), size)
    return _load_folder(path, entries, chosen, size)


def save_npz(path: str | Path, dataset: Dataset) -> None:
    """Writes a data set whole, as an ``.npz`` that :func:`load_dataset` reads.

    Args:
        path: the file; its folder is made where it is missing.
        dataset: images, labels and class names; the name is that of the file from then on.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    try:
        # A stream, since NumPy adds .npz to a path that does not end so.
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream, x=dataset.images, y=dataset.labels, class_names=np.asarray(dataset.class_names, np.str_)
            )
    except OSError as error:
        raise DataError(f"cannot write {path} ({_cause(error)}); choose another place") from error


@_no_os_error
def load_image(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decodes an image upright, as its EXIF orientation says.

    Args:
        path: a PNG, JPEG, BMP, PPM or WebP file.
        size: height and width in pixels to resize to, bilinearly (over the covered area where it shrinks); ``None``
            for the image's own.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: the file is missing, damaged, of another kind or more than 8 bits a channel, or has more pixels than
            Pillow's guard against decompression bombs lets through.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_size(size)
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no image at {path}; give a PNG, JPEG, BMP, PPM or WebP file")
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; the limit is meant here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_DECODERS) as opened:
                deep = opened.mode.startswith(("I", "F"))
                image = opened if deep else ImageOps.exif_transpose(opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is too large to decode ({_cause(error)}); shrink it first") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is no image of a known kind, expected PNG, JPEG, BMP, PPM or WebP; convert it"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's, not a decoder's
        # Pillow's decoders let whatever a damaged file makes them meet through; there is no common base to name.
        raise DataError(f"{path} is a damaged image ({_cause(error)}); copy it again or remove it") from error
    if deep:
        raise DataError(f"{path} has more than 8 bits a channel (mode {image.mode}), expected 8; convert it")
    return _resize(np.array(image, np.uint8), size)


@_no_os_error
def list_images(path: str | Path) -> list[Path]:
    """Lists the images of a folder and all folders in it.

    Hidden entries are left out, and links to folders are not followed. A link to a file outside the folder is refused,
    as in :func:`load_dataset`.

    Args:
        path: a folder; or a file, of any ending, which is then the only one.

    Returns:
        The paths, sorted; each begins with ``path``.

    Raises:
        DataError: nothing is there, or no image is in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"nothing at {path}, expected an image or a folder of images")
    found: list[Path] = []
    pending = [path]
    while pending:
        for entry in _entries(pending.pop()):
            if entry.is_dir():
                if not entry.is_symlink():
                    pending.append(entry)
            elif entry.suffix.lower() in IMAGE_SUFFIXES:
                found.append(_checked_entry(entry, path))
    if not found:
        raise DataError(f"no image in {path}, expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------------- npz


def _load_npz(path: Path, split: Split) -> Dataset:
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not an .npz archive, or a truncated one; give an .npz with x and y, or a folder (unpack"
            " other archives first)"
        )
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged archive raises whatever zipfile and NumPy meet in it
        raise DataError(f"{path} is not a readable .npz archive ({_cause(error)}); copy it again") from error
    with archive:
        names = set(archive.files)
        plain = {"x", "y"} <= names
        x_name, y_name = ("x", "y") if plain else (f"{split}_x", f"{split}_y")
        if not {x_name, y_name} <= names:
            raise DataError(
                f"{path} holds {', '.join(sorted(names)[:6]) or 'nothing'}; expected x (N, H, W, 3) uint8 and y (N,)"
                f" integer, or {split}_x and {split}_y"
            )
        images, labels = _npz_member(archive, x_name, path), _npz_member(archive, y_name, path)
        class_names = _npz_member(archive, "class_names", path) if "class_names" in names else np.zeros(0, np.str_)
    if class_names.dtype.kind != "U" or class_names.ndim != 1:
        raise DataError(f"class_names of {path}: {_describe(class_names)}, expected (classes,) text; save it again")
    name = path.stem if plain else f"{path.stem}-{split}"
    return Dataset(images, _int_labels(labels, f"{y_name} of {path}"), tuple(class_names.tolist()), name)


def _npz_member(archive: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        member = archive[name]
    except Exception as error:  # as above; ValueError among them, for an array of pickled objects
        raise DataError(f"{name} of {path} cannot be read ({_cause(error)}); save it again") from error
    if not isinstance(member, np.ndarray):
        raise DataError(f"{name} of {path} is no array; save it again with numpy.savez")
    return member


def _int_labels(labels: NDArray[Any], what: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{what}: {_describe(labels)}, expected (N,) integer; give the index of each image's class, cast and"
            " flattened"
        )
    if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{what}: {labels.max()}, expected class indices from 0 on")
    return labels.astype(np.int64)


# ------------------------------------------------------------------------------------------------- folder of images


def _load_folder(path: Path, entries: Sequence[Path], split: Split, size: tuple[int, int] | None) -> Dataset:
    root, name = path, path.resolve().name
    # A folder train/ may also be a class, of trains: it is a split where there are folders in it.
    splits = {
        entry.name: entry
        for entry in entries
        if entry.name in _SPLITS and entry.is_dir() and any(child.is_dir() for child in _entries(entry))
    }
    if splits:
        if split not in splits:
            raise DataError(f"{path} holds {', '.join(sorted(splits))}/ and no {split}/; choose a split that is there")
        path, name = _checked_entry(splits[split], root), f"{name}-{split}"
        entries = _entries(path)
    classes = [entry for entry in entries if entry.is_dir()]
    if len(classes) < 2:
        raise DataError(
            f"{path} holds {len(classes)} folder(s), expected one a class and at least 2, as in cat/1.png, dog/2.png;"
            " or an unpacked CIFAR archive"
        )
    files = [_class_images(folder, root) for folder in classes]
    images = _load_all([file for group in files for file in group], size)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(group) for group in files])
    return Dataset(images, labels, tuple(folder.name for folder in classes), name)


def _class_images(folder: Path, root: Path) -> list[Path]:
    images = []
    for entry in _entries(_checked_entry(folder, root)):
        if entry.is_dir():
            raise DataError(f"folder {entry} inside a class, expected images right in {folder}; move them there")
        if entry.suffix.lower() in IMAGE_SUFFIXES:
            images.append(_checked_entry(entry, root))
    if not images:
        raise DataError(
            f"no image in class folder {folder}, expected files ending in {', '.join(IMAGE_SUFFIXES)}; add them, or"
            " remove the class"
        )
    return images


def _load_all(files: Sequence[Path], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    first = load_image(files[0], size)
    images = np.empty((len(files), *first.shape), np.uint8)
    images[0] = first
    for index, file in enumerate(files[1:], start=1):
        image = load_image(file, size)
        if image.shape != first.shape:
            raise DataError(
                f"{file} is {_pixels(image)} and {files[0]} {_pixels(first)}, expected one size; give the size to"
                " resize to"
            )
        images[index] = image
    return images


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _checked_entry(entry: Path, root: Path) -> Path:
    """Returns an entry below ``root`` that exists and leads nowhere else; raises DataError otherwise."""
    try:
        # The parents were checked on the way down, so only the entry itself can lead outside.
        inside = not entry.is_symlink() or entry.resolve(strict=True).is_relative_to(root.resolve())
        regular = entry.is_file() or entry.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise DataError(f"{entry} is a link to nothing ({_cause(error)}); remove it") from error
    if not inside:
        raise DataError(f"{entry} is a link that leads outside {root}; copy what it points to into the folder")
    if not regular:
        raise DataError(f"{entry} is neither a file nor a folder; remove it")
    return entry


# -------------------------------------------------------------------------------------------------------------- CIFAR

_CIFAR_SIDE = 32
_CIFAR_PIXELS = 3 * _CIFAR_SIDE * _CIFAR_SIDE


@dataclass(frozen=True)
class _CifarArchive:
    """How one version of one archive lays out its files."""

    kind: str
    classes: int
    train: re.Pattern[str]
    test: re.Pattern[str]
    names: str
    """File of the class names."""
    binary: bool
    label_bytes: int = 1
    """Binary: bytes before the pixels, the last of which is the label."""
    label_key: str = "labels"
    names_key: str = "label_names"

    def files(self, entries: Iterable[Path], split: Split) -> list[Path]:
        """The files of a split, in the archive's order."""
        pattern = self.train if split == "train" else self.test
        found = [entry for entry in entries if pattern.fullmatch(entry.name) and entry.is_file()]
        return sorted(found, key=lambda file: (len(file.name), file.name))

    def matches(self, entries: Sequence[Path]) -> bool:
        """Whether a folder holds such files; of pickles, the first byte is looked at too."""
        files = self.files(entries, "train") + self.files(entries, "test")
        return any(self.binary or _first_byte(file) == pickle.PROTO for file in files)


_CIFAR_ARCHIVES = (
    _CifarArchive(
        kind="CIFAR-10 (binary)",
        classes=10,
        train=re.compile(r"data_batch_\d+\.bin"),
        test=re.compile(r"test_batch\.bin"),
        names="batches.meta.txt",
        binary=True,
    ),
    _CifarArchive(
        kind="CIFAR-10 (python)",
        classes=10,
        train=re.compile(r"data_batch_\d+"),
        test=re.compile(r"test_batch"),
        names="batches.meta",
        binary=False,
    ),
    _CifarArchive(
        kind="CIFAR-100 (binary)",
        classes=100,
        train=re.compile(r"train\.bin"),
        test=re.compile(r"test\.bin"),
        names="fine_label_names.txt",
        binary=True,
        label_bytes=2,
    ),
    _CifarArchive(
        kind="CIFAR-100 (python)",
        classes=100,
        train=re.compile(r"train"),
        test=re.compile(r"test"),
        names="meta",
        binary=False,
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
)


def _load_cifar(archive: _CifarArchive, folder: Path, entries: Sequence[Path], split: Split) -> Dataset:
    files = archive.files(entries, split)
    if not files:
        raise DataError(f"{folder} is a {archive.kind} archive without its {split} files; unpack it again")
    numbers = [int(number) for file in files for number in re.findall(r"\d+", file.name)]
    if numbers != list(range(1, len(numbers) + 1)):
        raise DataError(
            f"{folder} holds batches {', '.join(map(str, numbers))}, expected all from 1 on ({archive.kind}); unpack"
            " the archive again"
        )
    read = _read_cifar_binary if archive.binary else _read_cifar_pickle
    parts = [read(archive, file) for file in files]
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    labels = np.concatenate([labels for _, labels in parts])
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Dataset(images, labels, _cifar_names(archive, folder), f"{folder.resolve().name}-{split}")


def _read_cifar_binary(archive: _CifarArchive, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    record = archive.label_bytes + _CIFAR_PIXELS
    content = np.frombuffer(file.read_bytes(), np.uint8)
    if not content.size or content.size % record:
        raise DataError(
            f"{file} has {content.size} bytes, expected a multiple of {record} ({archive.kind}); it may be truncated:"
            " unpack the archive again"
        )
    records = content.reshape(-1, record)
    return records[:, archive.label_bytes :], _cifar_labels(
        archive, file, records[:, archive.label_bytes - 1].astype(np.int64)
    )


def _read_cifar_pickle(archive: _CifarArchive, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = _load_restricted_pickle(file)
    holder, labels = content.get("data"), content.get(archive.label_key)
    pixels = holder.array if isinstance(holder, _PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _CIFAR_PIXELS or not len(pixels):
        seen = "none" if pixels is None else _describe(pixels)
        raise DataError(
            f"data of {file}: {seen}, expected (N, {_CIFAR_PIXELS}) uint8 ({archive.kind}); unpack it again"
        )
    if not isinstance(labels, list) or len(labels) != len(pixels) or any(type(label) is not int for label in labels):
        seen = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise DataError(
            f"{archive.label_key} of {file}: {seen}, expected {len(pixels)} integers ({archive.kind}); unpack it again"
        )
    # An integer of a pickle has no bound, one of an array has.
    bounded = [label if 0 <= label < archive.classes else -1 for label in labels]
    return pixels, _cifar_labels(archive, file, np.asarray(bounded, np.int64))


def _cifar_labels(archive: _CifarArchive, file: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    wrong = np.flatnonzero((labels < 0) | (labels >= archive.classes))
    if wrong.size:
        raise DataError(
            f"{file} gives image {wrong[0]} a label outside 0 to {archive.classes - 1} ({archive.kind}); it may be"
            " damaged: unpack the archive again"
        )
    return labels


def _cifar_names(archive: _CifarArchive, folder: Path) -> tuple[str, ...]:
    file = folder / archive.names
    if not file.is_file():
        return ()
    if archive.binary:
        lines = file.read_bytes().decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        listed = _load_restricted_pickle(file).get(archive.names_key)
        listed = listed if isinstance(listed, list) else []
        names = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in listed]
    if len(names) != archive.classes:
        raise DataError(
            f"{file} names {len(names)} classes, expected {archive.classes} ({archive.kind}); unpack the archive again"
        )
    return tuple(names)


def _first_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(1)


# --------------------------------------------------------------------------------------------------------- pickles


class _ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names something other than what arrays of uint8 need."""


class _Inert:
    """Stands for a NumPy function in a pickle: can be called, and has nothing that a pickle could change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for a function")


class _PickledDtype:
    """What a pickle says about an element type; only unsigned bytes are let through."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Byte order, alignment and the like, which do not matter for single bytes."""


class _PickledArray:
    """An array of uint8 in a pickle; ``array`` is ``None`` until its state came."""

    __slots__ = ("array",)

    array: NDArray[np.uint8] | None

    def __init__(self) -> None:
        self.array = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array with another state than version, shape, type, order, bytes")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without shape or type")
        # Python 2 wrote the bytes as its str, which reads back as text of one character a byte.
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array without bytes")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _pickled_dtype(code: object, *_: object) -> _PickledDtype:
    text = code.decode("latin1") if isinstance(code, bytes) else code
    if text not in ("u1", "|u1", "uint8", "B"):
        raise pickle.UnpicklingError(f"an array of type {text!r}, expected uint8")
    return _PickledDtype()


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("text in another encoding than latin1")
    return text.encode("latin1")


class _RestrictedUnpickler(pickle.Unpickler):
    """Reads dicts, lists, text, bytes, numbers and arrays of uint8; refuses every other name.

    What it allows by name it does not import: each name gives a stand-in that builds plain data, so a forged pickle
    meets none of NumPy's or the codecs' own code.
    """

    def find_class(self, module: str, name: str) -> object:
        """Gives the stand-in for a name; raises UnpicklingError for all that has none."""
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _Inert(lambda *_: _PickledArray())
            case "numpy", "ndarray":
                return _Inert(lambda *_: _PickledArray())
            case "numpy", "dtype":
                return _Inert(_pickled_dtype)
            case "_codecs", "encode":
                return _Inert(_encode)
        raise _ForbiddenNameError(f"{module}.{name}")


def _load_restricted_pickle(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            content = _RestrictedUnpickler(stream, encoding="latin1").load()
    except _ForbiddenNameError as error:
        raise DataError(
            f"{file} wants {_cause(error)}, expected arrays of uint8, lists and text only; nothing was run: get the"
            " archive from its authors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever the unpickler meets in it
        raise DataError(f"{file} is not a readable CIFAR file ({_cause(error)}); unpack the archive again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, expected a dict; unpack the archive again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


# --------------------------------------------------------------------------------------------------------- resizing


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError(f"size {size}, expected height and width in pixels, each at least 1")


def _resized(dataset: Dataset, size: tuple[int, int] | None) -> Dataset:
    if size is None or dataset.images.shape[1:3] == tuple(size):
        return dataset
    images = np.stack([_resize(image, size) for image in dataset.images])
    return Dataset(images, dataset.labels, dataset.class_names, dataset.name)


def _resize(image: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if size is None or image.shape[:2] == tuple(size):
        return image
    from PIL import Image

    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.uint8)


# --------------------------------------------------------------------------------------------------------- messages


def _describe(array: NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype}"


def _pixels(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _image_remedy(images: NDArray[Any]) -> str:
    if 0 in images.shape:
        return "put images in"
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        return "put the channels last: x.transpose(0, 2, 3, 1)"
    if images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 1):
        return "repeat the grey channel three times"
    if images.dtype.kind == "f":
        return "scale pixels to 0..255, round, and cast"
    return "save RGB pixels of 0..255"


def _cause(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
