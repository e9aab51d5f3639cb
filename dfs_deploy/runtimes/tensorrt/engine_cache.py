"""TensorRT's engines on disk, in ``tensorrt/`` of the bundle's cache (``dfs_deploy.bundle.cache``).

The ONNX file is the artefact; an engine is compiled from it for one version of TensorRT on one kind of GPU. Its key
holds everything that it depends on, and names its file; an engine that does not fit, or was changed, is never given to
TensorRT. What is missing is built, one engine at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import MAX_FILE, TENSORRT, Cache
from dfs_deploy.bundle.engines import PlacedEngine, engines_of
from dfs_deploy.errors import EngineError, EnvironmentLacksError, UsageError
from dfs_deploy.io.files import nameless_file, sha256, write_whole
from dfs_deploy.io.json_files import MAX_JSON, MalformedError, decode_json
from dfs_deploy.io.text import first_line
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes.tensorrt.builder import BuildRequest, EngineKey, build_in_process
from dfs_deploy.runtimes.tensorrt.device import DeviceFacts, device_facts
from dfs_deploy.runtimes.tensorrt.library import numbers, tensorrt_version

MOST_IMAGES = 4096
"""The largest batch that an engine may be built for."""

_HEADER = struct.Struct("<II16x4B")
"""Beginning of an engine: ``_MAGIC``, zero, and at byte 24 TensorRT's version."""

_MAGIC = 0x74727466
_HEADERS_SINCE = (10,)
"""TensorRT from which the header holds its version where it does now; before, only the magic number is known to."""

_LOG = logging.getLogger(__name__)


class BuildSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings that a user chooses for all engines of a bundle.

    Attributes:
        batch: the largest batch that they take at once.
        workspace_mib: device memory that one layer may use while it runs, in MiB; ``None`` for no limit.
    """

    batch: int = 1
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MOST_IMAGES:
            raise UsageError(f"a batch of {self.batch}, expected 1 to {MOST_IMAGES}; give another --batch")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"a workspace of {self.workspace_mib} MiB, expected 1 or more; give another --workspace")

    @property
    def profiles(self) -> tuple[tuple[int, int, int], ...]:
        """Least, best and greatest batch of each optimisation profile: a single image has its own."""
        return ((1, 1, 1),) if self.batch == 1 else ((1, 1, 1), (1, self.batch, self.batch))


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of an engine, kept beside it.

    Attributes:
        label: name of the first engine of the bundle that it was built for.
        key: key of everything that it depends on.
        sha256: digest of the engine.
        typing: ``strong``, or ``weak`` if this TensorRT did not take the strongly typed network.
        seconds: duration of the build.
    """

    label: str
    key: EngineKey
    sha256: str
    typing: str
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """Result of ``prepare``.

    Attributes:
        folder: folder of the engines.
        tensorrt: version that built them.
        device: GPU that they were built for.
        built: labels of the engines that were built.
        kept: number of engines that fitted already.
        weakly_typed: labels of the engines that this TensorRT took only as weakly typed networks.
        seconds: duration.
    """

    folder: Path
    tensorrt: str
    device: DeviceFacts
    built: tuple[str, ...]
    kept: int
    weakly_typed: tuple[str, ...]
    seconds: float


def prepare(
    bundle: Bundle, settings: BuildSettings | None = None, progress: Progress = silent, cache: Cache | None = None
) -> Prepared:
    """Builds every engine that is missing or does not fit this machine any more, and keeps it.

    Args:
        bundle: bundle with engines for TensorRT.
        settings: settings to build with; ``None`` for those of the last time.
        progress: callback for the engine that is being built, and the share of all engines that are.
        cache: the bundle's cache; ``None`` for the usual one.

    Raises:
        BundleError: the bundle has no engines for TensorRT.
        EnvironmentLacksError: TensorRT, pycuda or a GPU is missing, or nothing can be kept.
        EngineError: an engine could not be built; the message names it, and what was built before it is kept.
    """
    wanted = network_engines(bundle)
    engines = EngineCache(bundle, device_facts(), settings, cache)
    if engines.unkept:  # before the work that would be lost
        raise EnvironmentLacksError(
            f"the engines cannot be kept ({engines.unkept}); make the folder one that can be written, or name another"
            " with --cache-dir"
        )
    begin, built = time.perf_counter(), {}
    for i, engine in enumerate(wanted):
        progress(f"building {engine.label}", i / len(wanted))
        _, typing = engines.obtain(engine)
        if typing:
            built[engine.label] = typing
    progress("building engines", 1.0)
    return Prepared(
        folder=engines.folder,
        tensorrt=engines.version,
        device=engines.device,
        built=tuple(built),
        kept=len(wanted) - len(built),
        weakly_typed=tuple(label for label, typing in built.items() if typing == "weak"),
        seconds=time.perf_counter() - begin,
    )


def network_engines(bundle: Bundle) -> list[PlacedEngine]:
    """The engines of a bundle that run in TensorRT, where every option runs in its own precision."""
    return [engine for engine in engines_of(bundle, "tensorrt") if engine.rank == 0]


def onnx_file(engine: PlacedEngine) -> str:
    """Name of an engine's ONNX graph in the bundle."""
    return engine.engine.files["float32"]


def input_name(engine: PlacedEngine) -> str:
    """Name of an engine's input."""
    return "images" if engine.part == "stem" else "features"


class EngineCache:
    """The engines of a bundle that were built on this machine.

    Args:
        bundle: bundle with engines for TensorRT.
        device: facts of the GPU.
        settings: settings to build with, kept for the next time; ``None`` for those of the last time.
        cache: the bundle's cache; ``None`` for the usual one.

    Attributes:
        unkept: why what is built is not kept, but held in memory; empty if it is kept.
        version: version of TensorRT.
    """

    def __init__(
        self, bundle: Bundle, device: DeviceFacts, settings: BuildSettings | None = None, cache: Cache | None = None
    ) -> None:
        self._cache = Cache(bundle) if cache is None else cache
        self._bundle, self.device = bundle, device
        self.unkept = self._cache.why_not(TENSORRT)
        self.folder = self._cache.folder / TENSORRT
        self.settings = load_settings(self._cache) if settings is None else settings
        if settings is not None and not self.unkept:
            with self._keeping(), self._cache.writing(TENSORRT) as folder:
                self.folder = folder
                write_whole(folder / "settings.json", msgspec.json.encode(settings) + b"\n")
        self.version = tensorrt_version()

    def ready(self) -> tuple[int, int]:
        """Number of engines that are built and fit, and number of all."""
        fitting = [self._load(self._key(engine)) is not None for engine in network_engines(self._bundle)]
        return sum(fitting), len(fitting)

    def obtain(self, engine: PlacedEngine) -> tuple[bytes, str]:
        """An engine's serialised form, built now if there is none that fits: by one process, while the others wait.

        Returns:
            The engine, and how its network was typed, ``strong`` or ``weak``; empty if it was not built now.

        Raises:
            EngineError: it could not be built.
        """
        key = self._key(engine)
        kept = self._load(key)
        if kept is not None:
            return kept, ""
        with contextlib.ExitStack() as held:
            folder: Path | None = None
            if not self.unkept:
                with self._keeping():
                    folder = self.folder = held.enter_context(self._cache.writing(TENSORRT))
            kept = self._load(key)  # another process may have built it meanwhile
            return (kept, "") if kept is not None else self._build(engine, key, folder)

    def _build(self, engine: PlacedEngine, key: EngineKey, folder: Path | None) -> tuple[bytes, str]:
        begin = time.perf_counter()
        with nameless_file() as file:
            request = BuildRequest(
                parent=os.getpid(),
                label=engine.label,
                key=key,
                engine=file.fileno(),
                timing_cache=None if folder is None else str(folder / self._timing_cache),
            )
            typing = build_in_process(request, self._bundle.model(onnx_file(engine)))
            file.seek(0)
            built = file.read()
        if not written_by(built, self.version):
            raise EngineError(
                f"{engine.label}: what TensorRT {self.version} built does not begin as its engines do; report it"
            )
        seconds = time.perf_counter() - begin
        _LOG.info("%s: built in %.1f s by TensorRT %s, %sly typed", engine.label, seconds, self.version, typing)
        if folder is not None:
            with self._keeping():
                save_engine(folder, EngineRecord(engine.label, key, sha256(built), typing, seconds), built)
        return built, typing

    def _key(self, engine: PlacedEngine) -> EngineKey:
        return EngineKey(
            onnx=sha256(self._bundle.model(onnx_file(engine))),
            precision=engine.engine.precision,
            tensorrt=self.version,
            device=self.device.name,
            compute_capability=self.device.compute_capability,
            inputs={input_name(engine): engine.takes},
            profiles=self.settings.profiles,
            workspace_mib=self.settings.workspace_mib,
        )

    @property
    def _timing_cache(self) -> str:
        """Name of the file of times that builds measured: one per version of TensorRT and kind of GPU."""
        key = sha256(msgspec.json.encode([self.version, self.device.name, self.device.compute_capability]))
        return f"timing-{key[:16]}.cache"

    def _load(self, key: EngineKey) -> bytes | None:
        """An engine; ``None`` if none was built, or it is of another key, changed, or of another TensorRT."""
        content = self._cache.read(f"{TENSORRT}/{key.name}.json", MAX_JSON)
        engine = self._cache.read(f"{TENSORRT}/{key.name}.plan", MAX_FILE)
        if content is None or engine is None:
            return None
        try:
            record = decode_json(content, EngineRecord)
        except MalformedError:
            return None
        fits = record.key == key and record.sha256 == sha256(engine)
        return engine if fits and written_by(engine, key.tensorrt) else None

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Notes why something cannot be kept; what was built is held in memory all the same."""
        try:
            yield
        except OSError as error:
            self.unkept = f"{error.filename}: {first_line(error)}" if error.filename else first_line(error)
            _LOG.warning("engines are not kept: %s", self.unkept)


def load_settings(cache: Cache) -> BuildSettings:
    """Settings of the last build, or the defaults if there are none that can be read."""
    content = cache.read(f"{TENSORRT}/settings.json", MAX_JSON)
    with contextlib.suppress(MalformedError, UsageError):  # a cache: what cannot be read is made anew
        return BuildSettings() if content is None else decode_json(content, BuildSettings)
    return BuildSettings()


def save_engine(folder: Path, record: EngineRecord, engine: bytes) -> None:
    """Keeps an engine, then its record: an engine without a record of its own counts as none."""
    write_whole(folder / f"{record.key.name}.plan", engine)
    write_whole(folder / f"{record.key.name}.json", msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def written_by(engine: bytes, version: str) -> bool:
    """Whether this version of TensorRT wrote an engine, judged by its header."""
    if len(engine) < _HEADER.size:
        return False
    magic, zero, *found = _HEADER.unpack_from(engine)
    wanted = numbers(version)
    if (magic, zero) != (_MAGIC, 0):
        return False
    return wanted < _HEADERS_SINCE or tuple(found[: len(wanted)]) == wanted
