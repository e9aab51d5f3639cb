"""Engines in ONNX Runtime's blocked layout: made on the machine that runs them, and kept in the bundle's cache.

They lie in ``prepared-KEY/`` of the cache (:mod:`dfs_deploy.bundle.cache`), one file per engine and an index of their
digests, under a key of all that they depend on: the bundle's digest, the CPU and the versions of ONNX Runtime and of
dfs-deploy. What was made for another key is never read; what does not match its digest is made anew. The bundle itself
stays portable. Processes that start at once prepare once: one of them does, and the others wait for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from google.protobuf.message import Error as ProtobufError
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import MAX_FILE, PREPARED, Cache, UnkeptError, cache_key, mark_used
from dfs_deploy.bundle.manifest import Engine, Layout
from dfs_deploy.errors import BundleError, DfsDeployError
from dfs_deploy.io.files import put_folder, read_file, sha256, temporary_folder
from dfs_deploy.io.json_files import MalformedError, read_json
from dfs_deploy.io.text import first_line
from dfs_deploy.runtimes.onnxruntime.binding import laid_out, open_session, run_once, session_options
from dfs_deploy.runtimes.onnxruntime.blocked import (
    UnfitModelError,
    block_size,
    blocked_files,
    blocked_head,
    blocked_stem,
)
from dfs_deploy.system.cpu import describe_cpu
from dfs_deploy.system.ort import onnxruntime as ort

VERSION = 1
TOLERANCE = 1e-4
"""Greatest difference from the plain engine, relative to its greatest output: sums are added in another order."""

_INDEX = "index.json"


class PreparedIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder of prepared engines holds.

    Attributes:
        version: of this format.
        key: what they were made for; see :func:`prepared_key`.
        together: channels that lie together in their float32 features.
        files: by the bundle's name of an engine, the SHA-256 of the model to run instead, which names its file too.
        failure: why none can be made, if that is for good; else empty.
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
        lasting: whether it would fail again here.
        folder: where the engines are kept; ``None`` where they are not.
    """

    together: int = 1
    reason: str = ""
    failed: bool = False
    lasting: bool = False
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
            data = read_file(path, MAX_FILE, follow=False)
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({first_line(error)}); run dfs-deploy prepare") from error
        if sha256(data) != self._digests[file]:
            raise DamagedError(f"{path} is not what was kept; run dfs-deploy prepare")
        return data

    def digest(self, file: str) -> str | None:
        """SHA-256 of the model to run instead of a bundle's file; ``None`` if that file itself runs."""
        return self._digests.get(file)

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


ONE_ENGINE = "a static policy runs as one engine, within which ONNX Runtime lays features out itself"

PLAIN = PreparedEngines(reason="not asked for")
"""The bundle's own engines."""


def prepared_key(bundle: Bundle) -> dict[str, str]:
    """Everything that a prepared engine depends on."""
    return cache_key(bundle=bundle.digest, cpu=describe_cpu().key, onnxruntime=ort.__version__)


def prepared_name(bundle: Bundle) -> str:
    """Name of the folder in the cache that holds the engines prepared for this machine."""
    return f"{PREPARED}{sha256(msgspec.json.encode(prepared_key(bundle), order='sorted'))[:16]}"


def obtain_prepared(bundle: Bundle, cache: Cache | None = None) -> PreparedEngines:
    """The engines prepared for this machine, made now where there are none."""
    return load_prepared(bundle, cache) or prepare_engines(bundle, None, cache)


def whole_prepared(
    bundle: Bundle, progress: Callable[[float], None] | None = None, cache: Cache | None = None
) -> tuple[PreparedEngines, bool]:
    """The same, every kept engine checked, and whether they were there already; what a killed process left goes."""
    found = load_prepared(bundle, cache)
    if found is not None and found.is_whole():
        (cache or Cache(bundle)).tidy()
        return found, True
    return prepare_engines(bundle, progress, cache), False


def load_prepared(bundle: Bundle, cache: Cache | None = None) -> PreparedEngines | None:
    """The engines prepared for this machine; the bundle's own where no others are of use here.

    ``None`` where none are kept, or what lies there is something else.
    """
    together = block_size()
    if needless := _why_plain(bundle, together):
        return PreparedEngines(reason=needless)
    folders = (cache or Cache(bundle)).folders(prepared_name(bundle))
    found = (_load(bundle, folder, together) for folder in folders)
    return next((kept for kept in found if kept is not None), None)


def _load(bundle: Bundle, folder: Path, together: int) -> PreparedEngines | None:
    try:
        index = read_json(folder / _INDEX, PreparedIndex, follow=False)
    except (OSError, MalformedError):
        return None  # none was kept, or, since this is a cache, one that cannot be read
    if (index.version, index.key) != (VERSION, prepared_key(bundle)):
        return None
    if index.failure:
        return PreparedEngines(reason=index.failure, failed=True)
    expected = {part.engine.files[layout] for part in _parts(bundle) for layout in part.layouts}
    if set(index.files) != expected or not all(map(_is_digest, index.files.values())):
        return None
    if index.together != together:
        return None
    mark_used(folder)
    return PreparedEngines(index.together, folder=folder, _digests=index.files)


def prepare_engines(
    bundle: Bundle, progress: Callable[[float], None] | None = None, cache: Cache | None = None
) -> PreparedEngines:
    """Makes a bundle's engines for the blocked layout, holds each against its plain layout, and keeps them.

    Where another process is at it, that is waited for, and what it made is given.

    Args:
        bundle: with engines for ONNX Runtime.
        progress: called with how far it is, 0 to 1.
        cache: of the bundle; ``None`` for the usual one.

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
    made: PreparedEngines | None = None
    try:
        with (cache or Cache(bundle)).writing() as place:
            folder = place / prepared_name(bundle)
            found = None if folder.is_symlink() else _load(bundle, folder, together)
            if found is not None and found.is_whole():
                return found
            made = _made(bundle, together, progress)
            if made.failed and not made.lasting:
                return made
            _keep(bundle, made, folder)
            _remove_outdated(bundle, folder)
            return made if made.failed else replace(made, folder=folder)
    except OSError as error:  # nothing can be kept
        if made is None:
            made = _made(bundle, together, progress)
        return made if made.failed else replace(made, reason=_said(error))


def _said(error: OSError) -> str:
    if isinstance(error, UnkeptError):
        return str(error)
    return f"{error.filename}: {first_line(error)}" if error.filename else first_line(error)


def _made(bundle: Bundle, together: int, progress: Callable[[float], None] | None) -> PreparedEngines:
    """The engines, held in memory; the bundle's own, with the reason, if one could not be made."""
    models: dict[str, bytes] = {}
    parts = list(_parts(bundle))
    try:
        for i, part in enumerate(parts):
            made = _blocked(bundle, part)
            _compare(bundle, part, made, together)
            models.update({part.engine.files[layout]: data for layout, data in made.items()})
            if progress is not None:
                progress((i + 1) / len(parts))
    except (DfsDeployError, LookupError, ValueError, OSError, MemoryError, ProtobufError) as error:
        # The plain engines run, and this is said. An engine of an unexpected layout stays so; what a machine is short
        # of now, the next start may have.
        reason = str(error) if isinstance(error, DfsDeployError) else f"{type(error).__name__}: {first_line(error)}"
        lasting = isinstance(error, UnfitModelError | LookupError | ValueError)
        return PreparedEngines(reason=reason, failed=True, lasting=lasting)
    digests = {file: sha256(data) for file, data in models.items()}
    return PreparedEngines(together, _digests=digests, _models=models)


def _why_plain(bundle: Bundle, together: int) -> str:
    """Why a bundle has no other engines than its own on a machine with blocks of this size; empty where it may have."""
    if bundle.policy is not None:
        return ONE_ENGINE
    if together == 1:
        return "ONNX Runtime has no blocked layout for this CPU"
    channels = {block.out_channels for block in bundle.architecture.blocks}
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
    def layouts(self) -> tuple[Layout, ...]:
        """Of the features that a model is made for; an engine that takes and gives uint8 runs as it is."""
        both = self.engine.output == "float32" and not self.is_stem and not self.is_head
        return tuple(self.engine.files) if both else ("float32",)


def _parts(bundle: Bundle) -> Iterator[_Part]:
    engines, architecture = bundle.manifest.runtimes["onnxruntime"], bundle.architecture
    maps = [block.out_shape for block in architecture.blocks]
    yield _Part(engines.stem, architecture.image_shape, maps[0], is_stem=True)
    for block in engines.blocks:
        served = [engine for options in block.options.values() for engine in options]
        for engine in served if block.skip is None else [block.skip, *served]:
            yield _Part(engine, maps[block.index - 1], maps[block.index])
    yield _Part(engines.head, maps[-1], (architecture.classes,), is_head=True)


def _blocked(bundle: Bundle, part: _Part) -> dict[Layout, bytes]:
    files = {layout: bundle.read(file) for layout, file in part.engine.files.items()}
    name = f"{bundle.path}: {part.engine.files['float32']}"
    if part.is_stem:
        return {"float32": blocked_stem(files["float32"], name)}
    if part.is_head:
        return {"float32": blocked_head(files["float32"], name)}
    return blocked_files(files, part.engine.output, name)


def _compare(bundle: Bundle, part: _Part, made: Mapping[Layout, bytes], together: int) -> None:
    """Runs what was made and the plain engine on the same features."""
    options, random = session_options(1), np.random.default_rng(0)
    for layout, data in made.items():
        file = part.engine.files[layout]
        shape = (1, *laid_out(part.takes, layout))
        taken: NDArray[np.float32] | NDArray[np.uint8]
        if layout == "uint8":
            taken = random.integers(0, 256, shape, np.uint8)
        else:
            taken = np.abs(random.normal(size=shape)).astype(np.float32)
        expected = run_once(open_session(bundle.read(file), file, options), file, taken)
        given = taken if layout == "uint8" or part.is_stem else _into_blocks(taken, together)
        got = run_once(open_session(data, f"{file}, prepared", options), file, given)
        if part.engine.output == "float32" and not part.is_head:
            got = _out_of_blocks(got, together)
        worst = float(np.abs(got.astype(np.float64) - expected).max())
        bound = TOLERANCE * float(np.abs(expected).max()) if part.engine.output == "float32" else 0.0
        if not worst <= bound:  # also where it is no number
            raise UnfitModelError(f"{file} gives other features in the blocked layout, by {worst:.3g}")


def _into_blocks(features: NDArray[np.float32] | NDArray[np.uint8], together: int) -> NDArray[np.float32]:
    """The memory of a map of (N, C, H, W) in the blocked layout, under the same shape."""
    n, c, h, w = features.shape
    moved = features.reshape(n, c // together, together, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(moved, np.float32).reshape(features.shape)


def _out_of_blocks(features: NDArray[np.float32], together: int) -> NDArray[np.float32]:
    n, c, h, w = features.shape
    return features.reshape(n, c // together, h, w, together).transpose(0, 1, 4, 2, 3).reshape(features.shape)


def _keep(bundle: Bundle, made: PreparedEngines, folder: Path) -> None:
    """Writes the engines, whole or not at all; raises OSError where they cannot be kept."""
    digests = dict(made._digests)
    index = PreparedIndex(VERSION, prepared_key(bundle), made.together, digests, made.reason if made.failed else "")
    with temporary_folder(folder) as temporary:
        whole = temporary / folder.name
        whole.mkdir()
        for file, data in made._models.items():
            (whole / _file_name(digests[file])).write_bytes(data)
        (whole / _INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
        put_folder(whole, folder)  # not synced before: an engine that a power failure cut off misses its digest


def _remove_outdated(bundle: Bundle, folder: Path) -> None:
    """Removes what was prepared for another bundle that lay under this name."""
    for other in folder.parent.glob(f"{PREPARED}*"):
        try:
            index = read_json(other / _INDEX, PreparedIndex, follow=False)
        except (OSError, MalformedError):
            continue  # of another version, perhaps another machine's: not ours to remove
        if index.key.get("bundle") != bundle.digest and not other.is_symlink():
            shutil.rmtree(other, ignore_errors=True)


def _file_name(digest: str) -> str:
    return f"{digest}.onnx"


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
