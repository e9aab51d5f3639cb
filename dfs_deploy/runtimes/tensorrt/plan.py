"""TensorRT's plans on disk, in ``tensorrt/`` of the bundle's cache (:mod:`dfs_deploy.bundle.cache`).

A plan is of use to one version of TensorRT on one kind of GPU. Its key holds everything that it depends on, and names
its file; one that does not fit, or was changed, is never given to TensorRT.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from dfs_deploy import __version__
from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import MAX_FILE, TENSORRT, Cache
from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import sha256, write_whole
from dfs_deploy.io.json_files import MAX_JSON, MalformedError, decode_json
from dfs_deploy.runtimes.tensorrt.device import DeviceFacts
from dfs_deploy.runtimes.tensorrt.library import numbers
from dfs_deploy.runtimes.tensorrt.wanted import WantedEngine

VERSION = 1
MOST_IMAGES = 4096
"""The largest batch that a plan may be made for."""

_MAGIC = 0x74727466
"""The first uint32 of a plan; the second is zero, and bytes 24 to 27 are TensorRT's version."""

_HEADER = struct.Struct("<II16x4B")
_HEADERS_SINCE = (10,)
"""Before, only the magic number is known to stand where it stands now."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What plans are made with.

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
        """The least, best and greatest batch of each optimisation profile: one image alone has its own."""
        return ((1, 1, 1),) if self.batch == 1 else ((1, 1, 1), (1, self.batch, self.batch))


class PlanKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a plan depends on."""

    onnx: str
    precision: str
    tensorrt: str
    device: str
    compute_capability: str
    inputs: dict[str, tuple[int, ...]]
    profiles: tuple[tuple[int, int, int], ...]
    workspace_mib: int | None
    flags: tuple[str, ...]
    dfs_deploy: str

    @property
    def name(self) -> str:
        """Of the plan's files."""
        return sha256(msgspec.json.encode(self, order="sorted"))[:16]


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept beside a plan.

    Attributes:
        version: of this format.
        label: the first engine that it was made for.
        key: what it depends on.
        sha256: of the plan.
        typing: ``strong``, or ``weak`` where this TensorRT did not take the strongly typed network.
        seconds: that the build took.
    """

    version: int
    label: str
    key: PlanKey
    sha256: str
    typing: str
    seconds: float


FLAGS = ("strongly typed, else weakly below 10.12", "no tf32")
"""How engines are built; another way of building is another key."""


def plan_key(bundle: Bundle, engine: WantedEngine, settings: Settings, facts: DeviceFacts, version: str) -> PlanKey:
    """The key of an engine's plan on this machine."""
    return PlanKey(
        onnx=bundle.manifest.files[engine.file].sha256,
        precision=engine.precision,
        tensorrt=version,
        device=facts.name,
        compute_capability=facts.compute_capability,
        inputs={engine.input: engine.takes},
        profiles=settings.profiles,
        workspace_mib=settings.workspace_mib,
        flags=FLAGS,
        dfs_deploy=__version__,
    )


def timing_cache(folder: Path, facts: DeviceFacts, version: str) -> Path:
    """Where the times that a build measured lie: of one version on one kind of GPU."""
    key = sha256(msgspec.json.encode([version, facts.name, facts.compute_capability]))
    return folder / f"timing-{key[:16]}.cache"


def load_settings(cache: Cache) -> Settings:
    """What plans were last made with, or the defaults."""
    content = cache.read(f"{TENSORRT}/settings.json", MAX_JSON)
    if content is None:
        return Settings()
    try:
        return decode_json(content, Settings)
    except (MalformedError, UsageError):
        return Settings()  # a cache: what cannot be read is made anew


def save_settings(folder: Path, settings: Settings) -> None:
    """Keeps what plans are made with, so that a runtime makes a missing one in the same way."""
    write_whole(folder / "settings.json", msgspec.json.encode(settings) + b"\n")


def load_plan(cache: Cache, key: PlanKey) -> bytes | None:
    """A plan, or ``None`` where none was made, it is of another key, was changed, or another TensorRT wrote it."""
    content = cache.read(f"{TENSORRT}/{key.name}.json", MAX_JSON)
    plan = cache.read(f"{TENSORRT}/{key.name}.plan", MAX_FILE)
    if content is None or plan is None:
        return None
    try:
        record = decode_json(content, PlanRecord)
    except MalformedError:
        return None
    fits = record.version == VERSION and record.key == key and record.sha256 == sha256(plan)
    return plan if fits and written_by(plan, key.tensorrt) else None


def save_plan(folder: Path, record: PlanRecord, plan: bytes) -> None:
    """Keeps a plan, then what it is: a plan whose record is missing or of another is as none."""
    write_whole(folder / f"{record.key.name}.plan", plan)
    write_whole(folder / f"{record.key.name}.json", msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def plan_version(plan: bytes) -> tuple[int, int, int, int] | None:
    """The version of TensorRT in a plan's header, or ``None`` where this is no plan."""
    if len(plan) < _HEADER.size:
        return None
    magic, zero, *version = _HEADER.unpack_from(plan)
    return (version[0], version[1], version[2], version[3]) if (magic, zero) == (_MAGIC, 0) else None


def written_by(plan: bytes, version: str) -> bool:
    """Whether this version of TensorRT wrote a plan, going by its header alone."""
    found, wanted = plan_version(plan), numbers(version)
    if found is None or wanted < _HEADERS_SINCE:
        return found is not None
    return found[: len(wanted)] == wanted
