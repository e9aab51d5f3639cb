"""Engines in ONNX Runtime's blocked layout: made on the machine that runs them, and kept beside the bundle.

They lie in ``NAME.dfs.cache/prepared-KEY/``, one file an engine and an index of their digests, under a key of all
that they depend on: the bundle's digest, the CPU and ONNX Runtime's version. What was made for another key is never
read; what does not match its digest is made anew. The bundle itself stays portable.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.cpu import describe_cpu
from dfs_deploy.decoding import UNREADABLE
from dfs_deploy.errors import BundleError, DfsDeployError
from dfs_deploy.files import put_folder, sha256
from dfs_deploy.manifest import Engine, Form
from dfs_deploy.ort import onnxruntime as ort
from dfs_deploy.runtimes.onnxruntime.binding import laid_out, open_session, run_once, session_options
from dfs_deploy.runtimes.onnxruntime.blocked import block_size, blocked_files, blocked_head, blocked_stem

VERSION = 1
TOLERANCE = 1e-4
"""Greatest difference from the plain engine, relative to its greatest output: sums are added in another order."""

_INDEX = "index.json"
_TEMPORARY = ".tmp"
_ABANDONED_S = 3600.0


class PreparedIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder of prepared engines holds.

    Attributes:
        version: of this format.
        key: what they were made for; see :func:`prepared_key`.
        together: channels that lie together in their float32 features.
        files: by the bundle's name of an engine, the SHA-256 of the model to run instead, which names its file too.
        failure: why none could be made; else empty.
    """

    version: int
    key: dict[str, str]
    together: int
    files: dict[str, str]
    failure: str = ""


class DamagedError(BundleError):
    """A kept engine is not what was written."""


@dataclass(frozen=True)
class PreparedEngines:
    """Engines to run instead of those in the bundle.

    Attributes:
        together: channels that lie together in float32 features; 1 where the bundle's own engines run.
        reason: why they run, or why nothing was kept; empty where all is as it should be.
        failed: whether they run because preparing others failed.
        folder: where the engines are kept; ``None`` where they are not.
    """

    together: int = 1
    reason: str = ""
    failed: bool = False
    folder: Path | None = None
    _digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    _models: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def read(self, file: str) -> bytes | None:
        """The model to run instead of a bundle's file, or ``None`` for that file itself.

        Raises:
            DamagedError: it was kept, and is gone, cannot be read or does not match its digest any more.
        """
        if file in self._models:
            return self._models[file]
        if self.folder is None or file not in self._digests:
            return None
        path = self.folder / _file_name(self._digests[file])
        try:
            data = b"" if path.is_symlink() else path.read_bytes()
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror}); run dfs-deploy prepare") from error
        if sha256(data) != self._digests[file]:
            raise DamagedError(f"{path} is not what was kept; run dfs-deploy prepare")
        return data

    def loaded(self) -> PreparedEngines:
        """The same without what is held to be read: the sessions have it now."""
        return replace(self, _models={})

    def is_whole(self) -> bool:
        """Whether engines are kept, and every one matches its digest."""
        try:
            return bool(self._digests) and all(self.read(file) for file in self._digests)
        except DamagedError:
            return False

    @property
    def description(self) -> str:
        """In words: the layout of float32 features, and where its engines are."""
        if self.together == 1:
            return f"plain: {self.reason}"
        where = "kept" if self.folder is not None else f"not kept: {self.reason}"
        return f"blocked by {self.together}, {where}"


PLAIN = PreparedEngines(reason="not asked for")
"""The bundle's own engines."""


def prepared_key(bundle: Bundle) -> dict[str, str]:
    """Everything that a prepared engine depends on."""
    return {"bundle": bundle.digest, "cpu": describe_cpu().key, "onnxruntime": ort.__version__}


def prepared_path(bundle: Bundle) -> Path:
    """Where the engines prepared for this machine lie, beside the bundle."""
    key = msgspec.json.encode(prepared_key(bundle), order="sorted")
    return bundle.path.with_name(f"{bundle.path.name}.cache") / f"prepared-{sha256(key)[:16]}"


def obtain_prepared(bundle: Bundle) -> PreparedEngines:
    """The engines prepared for this machine, made now where there are none."""
    return load_prepared(bundle) or prepare_engines(bundle)


def whole_prepared(bundle: Bundle, progress: Callable[[float], None] | None = None) -> tuple[PreparedEngines, bool]:
    """The same, every kept engine checked, and whether they were there already."""
    found = load_prepared(bundle)
    if found is not None and found.is_whole():
        return found, True
    return prepare_engines(bundle, progress), False


def load_prepared(bundle: Bundle) -> PreparedEngines | None:
    """The engines prepared for this machine; the bundle's own where no others are of use here.

    ``None`` where none are kept, or what lies there is something else.
    """
    together = block_size()
    if needless := _why_plain(bundle, together):
        return PreparedEngines(reason=needless)
    folder = prepared_path(bundle)
    if folder.is_symlink() or folder.parent.is_symlink():
        return None  # no link is followed out of the cache
    try:
        index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=PreparedIndex)
    except (OSError, *UNREADABLE):
        return None  # none was kept, or, since this is a cache, one that cannot be read
    if (index.version, index.key) != (VERSION, prepared_key(bundle)):
        return None
    if index.failure:
        return PreparedEngines(reason=index.failure, failed=True)
    expected = {part.engine.files[form] for part in _parts(bundle) for form in part.forms}
    if set(index.files) != expected or not all(map(_is_digest, index.files.values())):
        return None
    if index.together != together:
        return None
    return PreparedEngines(index.together, folder=folder, _digests=index.files)


def prepare_engines(bundle: Bundle, progress: Callable[[float], None] | None = None) -> PreparedEngines:
    """Makes a bundle's engines for the blocked layout, holds each against its plain form, and keeps them.

    Args:
        bundle: with engines for ONNX Runtime.
        progress: called with how far it is, 0 to 1.

    Returns:
        The engines, held in memory too until they are loaded. Where this CPU or the network's channels have no such
        layout, or an engine could not be made: the bundle's own, with the reason.

    Raises:
        BundleError: the bundle has no engines for ONNX Runtime.
    """
    if "onnxruntime" not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for onnxruntime; export with --runtime onnxruntime")
    together = block_size()
    if needless := _why_plain(bundle, together):
        return PreparedEngines(reason=needless)
    models: dict[str, bytes] = {}
    parts = list(_parts(bundle))
    try:
        for i, part in enumerate(parts):
            made = _blocked(bundle, part)
            _compare(bundle, part, made, together)
            models.update({part.engine.files[form]: data for form, data in made.items()})
            if progress is not None:
                progress((i + 1) / len(parts))
    except (DfsDeployError, LookupError, ValueError, OSError) as error:
        # An engine of an unexpected form, or no place for temporary files: the plain engines run, and this is said.
        first = (str(error).strip().splitlines() or [""])[0]
        failure = first if isinstance(error, DfsDeployError) else f"{type(error).__name__}: {first}"
        return replace(_keep(bundle, 1, {}, failure), together=1, reason=failure, failed=True, folder=None)
    return _keep(bundle, together, models)


def _why_plain(bundle: Bundle, together: int) -> str:
    """Why a bundle has no other engines than its own on a machine with blocks of this size; empty where it may have."""
    if together == 1:
        return "ONNX Runtime has no blocked layout for this CPU"
    channels = {shape.out_channels for shape in bundle.architecture.block_shapes()}
    return f"not every block's channels are a multiple of {together}" if any(c % together for c in channels) else ""


@dataclass(frozen=True)
class _Part:
    """An engine, and the sizes, without the batch, of what it takes and gives."""

    engine: Engine
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    is_stem: bool = False
    is_head: bool = False

    @property
    def forms(self) -> tuple[Form, ...]:
        """Of the features that a model is made for; an engine that takes and gives uint8 runs as it is."""
        both = self.engine.output == "float32" and not self.is_stem and not self.is_head
        return tuple(self.engine.files) if both else ("float32",)


def _parts(bundle: Bundle) -> Iterator[_Part]:
    engines, architecture = bundle.manifest.runtimes["onnxruntime"], bundle.architecture
    maps = [(shape.out_channels, *shape.out_size) for shape in architecture.block_shapes()]
    yield _Part(engines.stem, architecture.image_shape, maps[0], is_stem=True)
    for block in engines.blocks:
        served = [engine for options in block.options.values() for engine in options]
        for engine in served if block.skip is None else [block.skip, *served]:
            yield _Part(engine, maps[block.index - 1], maps[block.index])
    yield _Part(engines.head, maps[-1], (architecture.classes,), is_head=True)


def _blocked(bundle: Bundle, part: _Part) -> dict[Form, bytes]:
    files = {form: bundle.read(file) for form, file in part.engine.files.items()}
    name = f"{bundle.path}: {part.engine.files['float32']}"
    if part.is_stem:
        return {"float32": blocked_stem(files["float32"], name)}
    if part.is_head:
        return {"float32": blocked_head(files["float32"], name)}
    return blocked_files(files, part.engine.output, name)


def _compare(bundle: Bundle, part: _Part, made: Mapping[Form, bytes], together: int) -> None:
    """Runs what was made and the plain engine on the same features."""
    options, random = session_options(1), np.random.default_rng(0)
    for form, data in made.items():
        file = part.engine.files[form]
        shape = (1, *laid_out(part.takes, form))
        taken: NDArray[np.float32] | NDArray[np.uint8]
        if form == "uint8":
            taken = random.integers(0, 256, shape, np.uint8)
        else:
            taken = np.abs(random.normal(size=shape)).astype(np.float32)
        expected = run_once(open_session(bundle.read(file), file, options), file, taken)
        given = taken if form == "uint8" or part.is_stem else _into_blocks(taken, together)
        got = run_once(open_session(data, f"{file}, prepared", options), file, given)
        if part.engine.output == "float32" and not part.is_head:
            got = _out_of_blocks(got, together)
        worst = float(np.abs(got.astype(np.float64) - expected).max())
        bound = TOLERANCE * float(np.abs(expected).max()) if part.engine.output == "float32" else 0.0
        if not worst <= bound:  # also where it is no number
            raise BundleError(f"{file} gives other features in the blocked layout, by {worst:.3g}")


def _into_blocks(features: NDArray[np.float32] | NDArray[np.uint8], together: int) -> NDArray[np.float32]:
    """The memory of a map of (N, C, H, W) in the blocked layout, under the same shape."""
    n, c, h, w = features.shape
    moved = features.reshape(n, c // together, together, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(moved, np.float32).reshape(features.shape)


def _out_of_blocks(features: NDArray[np.float32], together: int) -> NDArray[np.float32]:
    n, c, h, w = features.shape
    return features.reshape(n, c // together, h, w, together).transpose(0, 1, 4, 2, 3).reshape(features.shape)


def _keep(bundle: Bundle, together: int, models: Mapping[str, bytes], failure: str = "") -> PreparedEngines:
    """Writes the engines, whole or not at all; what another process kept meanwhile stays."""
    folder = prepared_path(bundle)
    digests = {file: sha256(data) for file, data in models.items()}
    made = PreparedEngines(together, folder=folder, _digests=digests, _models=models)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    if folder.parent.is_symlink():
        return replace(made, reason=f"{folder.parent} is a link, which is not followed", folder=None)
    try:
        temporary.mkdir(parents=True)
        for file, data in models.items():
            (temporary / _file_name(digests[file])).write_bytes(data)
        index = PreparedIndex(VERSION, prepared_key(bundle), together, digests, failure)
        (temporary / _INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
        found = load_prepared(bundle)
        if found is None or not found.is_whole():
            put_folder(temporary, folder)
    except OSError as error:
        if load_prepared(bundle) is not None:
            return made  # another process was first
        return replace(made, reason=f"{error.filename or folder}: {error.strerror or error}", folder=None)
    finally:
        # Where two changed places, this is what stood there before.
        if temporary.is_symlink():
            temporary.unlink()
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_outdated(bundle, folder)
    return made


def _remove_outdated(bundle: Bundle, folder: Path) -> None:
    """Removes what was prepared for another bundle that lay under this name, and what a stopped process left."""
    for other in folder.parent.glob(f".prepared-*{_TEMPORARY}"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if time.time() - other.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(other)
    for other in folder.parent.glob("prepared-*"):
        try:
            index = msgspec.json.decode((other / _INDEX).read_bytes(), type=PreparedIndex)
        except (OSError, *UNREADABLE):
            continue  # of another version, perhaps another machine's: not ours to remove
        if index.key.get("bundle") != bundle.digest:
            shutil.rmtree(other, ignore_errors=True)


def _file_name(digest: str) -> str:
    return f"{digest}.onnx"


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
