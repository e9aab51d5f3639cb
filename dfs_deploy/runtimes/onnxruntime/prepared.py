"""Engines in ONNX Runtime's blocked layout: made on the machine that runs them, and kept in the bundle's cache.

They lie in ``prepared-KEY/`` of the cache (:mod:`dfs_deploy.bundle.cache`), one file per engine and an index of their
digests, under a key of everything that they depend on. What was made for another key is never read; what does not match
its digest is made again. The bundle itself stays portable. Of processes that start at once, one prepares and the others
wait for it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from google.protobuf.message import Error as ProtobufError
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import MAX_FILE, PREPARED, Cache, UnkeptError, cache_key, mark_used
from dfs_deploy.bundle.engines import PlacedEngine, engines_of
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.bundle.onnx_messages import parse_model
from dfs_deploy.errors import BundleError, DfsDeployError
from dfs_deploy.io.files import put_folder, read_file, sha256, temporary_folder
from dfs_deploy.io.json_files import Digest, VersionedFormat
from dfs_deploy.io.text import first_line
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes.buffers import laid_out
from dfs_deploy.runtimes.onnxruntime.blocked import (
    UnfitModelError,
    block_size,
    blocked_layouts,
    blocked_models,
    check_operators,
    from_blocks,
    to_blocks,
)
from dfs_deploy.runtimes.onnxruntime.sessions import open_session, run_once, session_options
from dfs_deploy.system.cpu import describe_cpu
from dfs_deploy.system.ort import onnxruntime as ort

_LOG = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Greatest difference from the plain engine, relative to its greatest output: sums are added in another order."""

_INDEX = "index.json"

ONE_ENGINE = "a static policy runs as one engine, within which ONNX Runtime lays features out itself"


class PreparedIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a folder of prepared engines.

    Attributes:
        version: version of this format.
        key: key of everything that they depend on; see :func:`prepared_key`.
        channel_block: channels that lie together in their float32 features.
        files: for each engine, by its name in the bundle, the SHA-256 of the model that runs instead; it also names
            the file of that model.
        failure: reason why none can be made, if that will not change; else empty.
    """

    version: int
    key: dict[str, str]
    channel_block: int = msgspec.field(name="together")
    files: dict[str, Digest]
    failure: str = ""


FORMAT = VersionedFormat(
    "index of prepared engines", PreparedIndex, 1, "run dfs-deploy prepare", error=BundleError, version_key="version"
)


class DamagedError(BundleError):
    """A kept engine is not what was written."""


@dataclass(frozen=True)
class PreparedEngines:
    """Engines that run instead of those in the bundle.

    Attributes:
        channel_block: channels that lie together in float32 features; 1 if the bundle's own engines run.
        reason: reason why the bundle's own engines run or nothing was kept; empty if all is well.
        failed: whether the bundle's own engines run because preparing failed.
        lasting: whether it would fail again here.
        folder: folder of the engines; ``None`` if they are not kept.
    """

    channel_block: int = 1
    reason: str = ""
    failed: bool = False
    lasting: bool = False
    folder: Path | None = None
    _digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    _models: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def read(self, file: str) -> bytes | None:
        """Reads the model that runs instead of a bundle's file; ``None`` for that file itself.

        Raises:
            DamagedError: it was kept, and is gone, cannot be read or is not what was kept.
        """
        if file in self._models:
            return self._models[file]
        if self.folder is None or file not in self._digests:
            return None
        path = _model_file(self.folder, self._digests[file])
        try:
            data = read_file(path, MAX_FILE, follow=False)
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({first_line(error)}); run dfs-deploy prepare") from error
        if sha256(data) != self._digests[file]:
            raise DamagedError(f"{path} is not what was kept; run dfs-deploy prepare")
        try:
            check_operators(parse_model(data, str(path)), str(path))
        except (BundleError, UnicodeDecodeError) as error:  # digests tell nothing of who wrote file and index
            raise DamagedError(f"{first_line(error)}, which is not what is kept; run dfs-deploy prepare") from error
        return data

    def digest(self, file: str) -> str | None:
        """SHA-256 of the model that runs instead of a bundle's file; ``None`` if that file itself runs."""
        return self._digests.get(file)

    def is_whole(self) -> bool:
        """Whether engines are kept, and every one is what was kept."""
        try:
            return bool(self._digests) and all(self.read(file) for file in self._digests)
        except DamagedError:
            return False

    @property
    def description(self) -> str:
        """Layout of float32 features and place of the engines, in words."""
        if self.channel_block == 1:
            return f"plain: {self.reason}"
        return f"blocked by {self.channel_block}, {'kept' if self.folder is not None else f'not kept: {self.reason}'}"


PLAIN = PreparedEngines(reason="not asked for")
"""The bundle's own engines."""


def prepared_key(bundle: Bundle) -> dict[str, str]:
    """Key of everything that a prepared engine depends on."""
    return cache_key(bundle=bundle.digest, cpu=describe_cpu().key, onnxruntime=ort.__version__)


def prepared_name(bundle: Bundle) -> str:
    """Name of the folder in the cache that holds the engines prepared for this machine."""
    return f"{PREPARED}{sha256(msgspec.json.encode(prepared_key(bundle), order='sorted'))[:16]}"


def obtain_prepared(bundle: Bundle, cache: Cache | None = None) -> PreparedEngines:
    """Loads the engines prepared for this machine, or makes them if there are none."""
    return load_prepared(bundle, cache) or prepare_engines(bundle, cache=cache)


def whole_prepared(
    bundle: Bundle, progress: Progress = silent, cache: Cache | None = None
) -> tuple[PreparedEngines, bool]:
    """Like :func:`obtain_prepared`, with every kept engine checked and the leftovers of killed processes removed.

    Returns:
        The engines, and whether they were there already.
    """
    found = load_prepared(bundle, cache)
    if found is not None and found.is_whole():
        (cache or Cache(bundle)).tidy()
        return found, True
    return prepare_engines(bundle, progress, cache), False


def load_prepared(bundle: Bundle, cache: Cache | None = None) -> PreparedEngines | None:
    """Loads the engines prepared for this machine.

    Returns:
        The engines; the bundle's own if others are of no use here; ``None`` if none are kept, or the folder holds
        something else.
    """
    channel_block = block_size()
    if reason := _why_plain(bundle, channel_block):
        return PreparedEngines(reason=reason)
    folders = (cache or Cache(bundle)).folders(prepared_name(bundle))
    found = (_load(bundle, folder, channel_block) for folder in folders)
    return next((kept for kept in found if kept is not None), None)


def _load(bundle: Bundle, folder: Path, channel_block: int) -> PreparedEngines | None:
    try:
        index = FORMAT.read(folder / _INDEX, follow=False)
    except BundleError:
        return None  # in a cache, an unreadable file counts as none
    if index.key != prepared_key(bundle):
        return None
    if index.failure:
        return PreparedEngines(reason=index.failure, failed=True)
    expected = {placed.engine.files[layout] for placed in _engines(bundle) for layout in blocked_layouts(placed)}
    if set(index.files) != expected or index.channel_block != channel_block:
        return None
    mark_used(folder)
    return PreparedEngines(index.channel_block, folder=folder, _digests=index.files)


def prepare_engines(bundle: Bundle, progress: Progress = silent, cache: Cache | None = None) -> PreparedEngines:
    """Makes a bundle's engines for the blocked layout, compares each with its plain engine, and keeps them.

    If another process is doing so, this waits for it and returns its engines.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        progress: callback.
        cache: cache of the bundle; ``None`` for the usual one.

    Returns:
        The engines, in memory too. If this CPU or the network's channels have no such layout, or an engine could not
        be made: the bundle's own, with the reason.

    Raises:
        BundleError: the bundle has no engines for ONNX Runtime.
    """
    if "onnxruntime" not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for onnxruntime; export with --runtime onnxruntime")
    channel_block = block_size()
    if reason := _why_plain(bundle, channel_block):
        return PreparedEngines(reason=reason)
    made: PreparedEngines | None = None
    try:
        with (cache or Cache(bundle)).writing() as place:
            folder = place / prepared_name(bundle)
            found = None if folder.is_symlink() else _load(bundle, folder, channel_block)
            if found is not None and found.is_whole():
                return found
            made = _make(bundle, channel_block, progress)
            if made.failed and not made.lasting:
                return made
            _keep(bundle, made, folder)
            _remove_outdated(bundle, folder)
            return made if made.failed else replace(made, folder=folder)
    except OSError as error:  # nothing can be kept
        if made is None:
            made = _make(bundle, channel_block, progress)
        where = "" if isinstance(error, UnkeptError) or not error.filename else f"{error.filename}: "
        return made if made.failed else replace(made, reason=f"{where}{first_line(error)}")


def _make(bundle: Bundle, channel_block: int, progress: Progress) -> PreparedEngines:
    """Makes the engines in memory; the bundle's own, with the reason, if one could not be made."""
    models: dict[str, bytes] = {}
    engines = _engines(bundle)
    try:
        for done, placed in enumerate(engines, 1):
            files = placed.engine.files
            name = f"{bundle.path}: {files['float32']}"
            made = blocked_models(placed, {layout: bundle.read(file) for layout, file in files.items()}, name)
            for layout, data in made.items():
                _compare(bundle, placed, layout, data, channel_block)
                models[files[layout]] = data
            progress("preparing engines", done / len(engines))
    except (DfsDeployError, LookupError, ValueError, OSError, MemoryError, ProtobufError) as error:
        # The plain engines run, and the reason is shown. An engine of an unexpected layout will not change; a resource
        # that is missing now may be there at the next start.
        reason = str(error) if isinstance(error, DfsDeployError) else f"{type(error).__name__}: {first_line(error)}"
        _LOG.info("%s: the bundle's own engines run, since preparing others failed: %s", bundle.path, reason)
        lasting = isinstance(error, UnfitModelError | LookupError | ValueError)
        return PreparedEngines(reason=reason, failed=True, lasting=lasting)
    digests = {file: sha256(data) for file, data in models.items()}
    return PreparedEngines(channel_block, _digests=digests, _models=models)


def _why_plain(bundle: Bundle, channel_block: int) -> str:
    """Reason why a bundle can only run its own engines here; empty if it may have others."""
    if bundle.policy is not None:
        return ONE_ENGINE
    if channel_block == 1:
        return "ONNX Runtime has no blocked layout for this CPU"
    if any(shape.out_channels % channel_block for shape in bundle.architecture.blocks):
        return f"not every block's channels are a multiple of {channel_block}"
    return ""


def _engines(bundle: Bundle) -> list[PlacedEngine]:
    """Every engine once, also if it runs for several options."""
    return list({p.engine.files["float32"]: p for p in engines_of(bundle, "onnxruntime")}.values())


def _compare(bundle: Bundle, placed: PlacedEngine, layout: Layout, data: bytes, channel_block: int) -> None:
    """Runs a prepared engine and the plain one on the same features; raises UnfitModelError if they differ."""
    options, random = session_options(1), np.random.default_rng(0)
    file, is_float = placed.engine.files[layout], placed.engine.output == "float32"
    shape = (1, *laid_out(placed.takes, layout))
    features: NDArray[np.float32] | NDArray[np.uint8]
    if layout == "uint8":
        features = random.integers(0, 256, shape, np.uint8)
    else:
        features = np.abs(random.normal(size=shape)).astype(np.float32)
    expected = run_once(open_session(bundle.read(file), file, options), file, features)
    given = features if layout == "uint8" or placed.part == "stem" else to_blocks(features, channel_block)
    got = run_once(open_session(data, f"{file}, prepared", options), file, given)
    if is_float and placed.part != "head":
        got = from_blocks(got, channel_block)
    worst = float(np.abs(got.astype(np.float64) - expected).max())
    if not worst <= (TOLERANCE * float(np.abs(expected).max()) if is_float else 0.0):  # true for NaN too
        raise UnfitModelError(f"{file} gives other features in the blocked layout, by {worst:.3g}")


def _keep(bundle: Bundle, made: PreparedEngines, folder: Path) -> None:
    """Writes the engines, whole or not at all; raises OSError if they cannot be kept."""
    digests = dict(made._digests)
    index = PreparedIndex(
        FORMAT.version, prepared_key(bundle), made.channel_block, digests, made.reason if made.failed else ""
    )
    with temporary_folder(folder) as temporary:
        whole = temporary / folder.name
        whole.mkdir()
        for file, data in made._models.items():
            _model_file(whole, digests[file]).write_bytes(data)
        (whole / _INDEX).write_bytes(FORMAT.encode(index))
        put_folder(whole, folder)  # not synced before: an engine that a power failure cut off misses its digest


def _remove_outdated(bundle: Bundle, folder: Path) -> None:
    """Removes what was prepared for another bundle that lay under this name."""
    for other in folder.parent.glob(f"{PREPARED}*"):
        try:
            index = FORMAT.read(other / _INDEX, follow=False)
        except BundleError:
            continue  # from another version, perhaps another machine: not ours to remove
        if index.key.get("bundle") != bundle.digest and not other.is_symlink():
            shutil.rmtree(other, ignore_errors=True)


def _model_file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.onnx"
