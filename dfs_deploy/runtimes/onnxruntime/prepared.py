"""Engines in ONNX Runtime's blocked layout: made on the machine that runs them, and kept in the bundle's cache.

They lie in one file of the cache (``dfs_deploy.bundle.cache``), named by a key of everything that they depend on.
What was made for another key, or is damaged, counts as none and is made again. The bundle itself stays portable. Of
processes that start at once, one prepares and the others wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from google.protobuf.message import Error as ProtobufError
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import MAX_FILE, PREPARED, Cache, UnkeptError, cache_key, mark_used
from dfs_deploy.bundle.engines import PlacedEngine, engines_of, laid_out
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.bundle.onnx_messages import UnfitError, parse_model
from dfs_deploy.bundle.weights import WEIGHTS, SharedWeights, WeightsInMemory, inlined, references_of
from dfs_deploy.errors import BundleError, DfsDeployError
from dfs_deploy.io.files import read_file, sha256, write_whole
from dfs_deploy.io.json_files import UNREADABLE
from dfs_deploy.io.text import first_line
from dfs_deploy.progress import Progress, silent
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
from dfs_deploy.system.threads import in_threads

_LOG = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Greatest difference from the plain engine, relative to its greatest output: sums are added in another order."""

ONE_ENGINE = "a static policy runs as one engine, within which ONNX Runtime lays features out itself"

MOST_BYTES = 512 << 20
"""Size of a bundle up to which engines are prepared: their weights lie in the cache a second time."""

_DIGEST = 64
"""Length of the SHA-256 at the beginning of the file, of what comes after it."""


class StoredEngines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the file, in MessagePack.

    Attributes:
        key: key of everything that they depend on; see ``prepared_key``.
        channel_block: channels that lie together in their float32 features.
        models: ONNX model that runs instead of each file of the bundle, with references into the weights.
        weights: their large constants, each once; see ``dfs_deploy.bundle.weights``.
        failure: reason why none can be made, if that will not change; else empty.
    """

    key: dict[str, str]
    channel_block: int
    models: dict[str, bytes]
    weights: memoryview
    failure: str = ""


@dataclass(frozen=True)
class PreparedEngines:
    """Engines that run instead of those in the bundle.

    Attributes:
        channel_block: channels that lie together in float32 features; 1 if the bundle's own engines run.
        reason: reason why the bundle's own engines run or nothing was kept; empty if all is well.
        failed: whether the bundle's own engines run because preparing failed.
        folder: folder of the file; ``None`` if they are not kept.
        made: whether they were made now, rather than found.
        models: ONNX model that runs instead of each file of the bundle, with references into the weights; other files
            run themselves.
        weights: large constants of these models.
    """

    channel_block: int = 1
    reason: str = ""
    failed: bool = False
    folder: Path | None = None
    made: bool = False
    models: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    weights: WeightsInMemory | None = field(default=None, repr=False)

    def model(self, file: str) -> bytes | None:
        """ONNX model that runs instead of a file of the bundle; ``None`` if the file runs itself."""
        model = self.models.get(file)
        return None if model is None else inlined(model, self.weights, f"{file}, prepared")

    @property
    def description(self) -> str:
        """Layout of float32 features and place of the engines, in words."""
        if self.channel_block == 1:
            return f"plain: {self.reason}"
        engines = "prepared engines kept" if self.folder is not None else f"prepared engines not kept: {self.reason}"
        return f"blocked by {self.channel_block}, {engines}"


PLAIN = PreparedEngines(reason="not asked for")
"""The bundle's own engines."""


def prepared_key(bundle: Bundle) -> dict[str, str]:
    """Key of everything that a prepared engine depends on."""
    return cache_key(bundle=bundle.digest, cpu=describe_cpu().key, onnxruntime=ort.__version__)


def prepared_name(bundle: Bundle) -> str:
    """Name of the file in the cache that holds the engines prepared for this machine."""
    key = sha256(msgspec.json.encode(prepared_key(bundle), order="sorted"))
    return f"{_name_of(bundle)}{key[:16]}.engines"


def load_prepared(bundle: Bundle, cache: Cache | None = None) -> PreparedEngines | None:
    """Loads the engines prepared for this machine.

    Returns:
        The engines; the bundle's own if others are of no use here; ``None`` if none are kept, or something else is.
    """
    channel_block = block_size()
    if reason := _why_plain(bundle, channel_block):
        return PreparedEngines(reason=reason)
    for path in (cache or Cache(bundle)).find(prepared_name(bundle)):
        stored = _read(path)
        if stored is None or stored.key != prepared_key(bundle):
            continue
        if stored.failure:
            return PreparedEngines(reason=stored.failure, failed=True)
        expected = {placed.engine.files[layout] for placed in _engines(bundle) for layout in blocked_layouts(placed)}
        if stored.models.keys() == expected and stored.channel_block == channel_block:
            mark_used(path)
            weights = WeightsInMemory(WEIGHTS, stored.weights)
            return PreparedEngines(channel_block, folder=path.parent, models=stored.models, weights=weights)
    return None


def prepare_engines(bundle: Bundle, progress: Progress = silent, cache: Cache | None = None) -> PreparedEngines:
    """Makes a bundle's engines for the blocked layout, compares each with its plain engine, and keeps them.

    Engines that are there are returned, and so are those that another process makes now. A failure is tried again.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        progress: callback.
        cache: cache of the bundle; ``None`` for the usual one.

    Returns:
        The engines. If this CPU or the network's channels have no such layout, or an engine could not be made: the
        bundle's own, with the reason.

    Raises:
        BundleError: the bundle has no engines for ONNX Runtime.
    """
    engines, cache = _engines(bundle), cache or Cache(bundle)
    found = load_prepared(bundle, cache)
    if found is not None and not found.failed:
        if found.folder is not None:
            cache.tidy()
        return found
    made: PreparedEngines | None = None
    try:
        with cache.writing() as folder:
            found = load_prepared(bundle, cache)
            if found is not None and not found.failed:
                return found
            made, lasting = _make(bundle, engines, progress)
            if made.failed and not lasting:
                return made
            stored = StoredEngines(
                prepared_key(bundle),
                made.channel_block,
                dict(made.models),
                memoryview(b"" if made.weights is None else made.weights.content),
                made.reason if made.failed else "",
            )
            content = msgspec.msgpack.encode(stored)
            write_whole(folder / prepared_name(bundle), sha256(content).encode() + content)
            _remove_outdated(bundle, folder)
            return made if made.failed else replace(made, folder=folder)
    except OSError as error:  # nothing can be kept
        if made is None:
            made, _ = _make(bundle, engines, progress)
        where = "" if isinstance(error, UnkeptError) or not error.filename else f"{error.filename}: "
        return made if made.failed else replace(made, reason=f"{where}{first_line(error)}")


def _read(path: Path) -> StoredEngines | None:
    """Content of a file in the cache; ``None`` if it is missing, unreadable or not what an export may lead to."""
    try:
        content = read_file(path, MAX_FILE, follow=False)
        if content[:_DIGEST] != sha256(content[_DIGEST:]).encode():
            return None
        stored = msgspec.msgpack.decode(memoryview(content)[_DIGEST:], type=StoredEngines)
        weights = WeightsInMemory(WEIGHTS, stored.weights)
        for name, model in stored.models.items():  # a digest tells nothing of who wrote the file
            parsed = parse_model(model, name)
            check_operators(parsed, name)
            references_of(parsed.graph, weights)
    except (OSError, BundleError, UnfitError, *UNREADABLE):
        return None
    return stored


def _make(bundle: Bundle, engines: list[PlacedEngine], progress: Progress) -> tuple[PreparedEngines, bool]:
    """Makes the engines; or returns the bundle's own with the reason, and whether that would happen again."""
    channel_block = block_size()
    lock, done = threading.Lock(), itertools.count(1)

    def prepare(placed: PlacedEngine) -> dict[str, bytes]:
        files = placed.engine.files
        name = f"{bundle.path}: {next(iter(files.values()))}"
        made = blocked_models(placed, {layout: bundle.model(file) for layout, file in files.items()}, name)
        for layout, data in made.items():
            _compare(bundle, placed, layout, data, channel_block)
        with lock:
            progress("preparing engines", next(done) / len(engines))
        return {files[layout]: data for layout, data in made.items()}

    weights, models = SharedWeights(), dict[str, bytes]()
    try:
        for made in in_threads([functools.partial(prepare, placed) for placed in engines]):
            models |= {file: weights.take(data, file) for file, data in made.items()}
    except (DfsDeployError, LookupError, ValueError, OSError, MemoryError, ProtobufError) as error:
        # The plain engines run, and the reason is shown. An engine of an unexpected layout will not change; a resource
        # that is missing now may be there at the next start.
        reason = str(error) if isinstance(error, DfsDeployError) else f"{type(error).__name__}: {first_line(error)}"
        _LOG.info("%s: the bundle's own engines run, since preparing others failed: %s", bundle.path, reason)
        return PreparedEngines(reason=reason, failed=True), isinstance(
            error, UnfitModelError | LookupError | ValueError
        )
    kept = WeightsInMemory(weights.name, weights.content)
    return PreparedEngines(channel_block, made=True, models=models, weights=kept), False


def _why_plain(bundle: Bundle, channel_block: int) -> str:
    """Reason why a bundle can only run its own engines here; empty if it may have others."""
    if bundle.policy is not None:
        return ONE_ENGINE
    if channel_block == 1:
        return "ONNX Runtime has no blocked layout for this CPU"
    if any(shape.out_channels % channel_block for shape in bundle.architecture.blocks):
        return f"not every block's channels are a multiple of {channel_block}"
    if bundle.size > MOST_BYTES:
        return f"the bundle has {bundle.size >> 20:,} MiB, and weights of up to {MOST_BYTES >> 20} are kept twice"
    floats = [
        placed
        for placed in engines_of(bundle, "onnxruntime")
        if placed.part == "block" and placed.engine.output == "float32" and "float32" in placed.engine.files
    ]
    if not any(placed.rank == 0 for placed in floats):
        return "no option passes float32 features from block to block, and other layouts gain nothing"
    return ""


def _engines(bundle: Bundle) -> list[PlacedEngine]:
    """Every engine that needs another model, once, also if it runs for several options."""
    placed = {tuple(p.engine.files.values()): p for p in engines_of(bundle, "onnxruntime")}
    return [each for each in placed.values() if blocked_layouts(each)]


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
    expected = run_once(open_session(bundle.model(file), file, options), file, features)
    given = features if layout == "uint8" or placed.part == "stem" else to_blocks(features, channel_block)
    got = run_once(open_session(data, f"{file}, prepared", options), file, given)
    if is_float and placed.part != "head":
        got = from_blocks(got, channel_block)
    worst = float(np.abs(got.astype(np.float64) - expected).max())
    if not worst <= (TOLERANCE * float(np.abs(expected).max()) if is_float else 0.0):  # true for NaN too
        raise UnfitModelError(f"{file} gives other features in the blocked layout, by {worst:.3g}")


def _name_of(bundle: Bundle) -> str:
    """Beginning of the name of every file that is prepared for a bundle."""
    return f"{PREPARED}{bundle.digest[:8]}-"


def _remove_outdated(bundle: Bundle, folder: Path) -> None:
    """Removes what was prepared for another bundle that lay under this name."""
    for other in folder.glob(f"{PREPARED}*.engines"):
        if not other.name.startswith(_name_of(bundle)):
            with contextlib.suppress(OSError):  # removed meanwhile, or no file
                other.unlink()
