"""Building plans, one at a time, each in a process of its own.

The builder takes gigabytes of host memory, and a build that the kernel kills or that crashes must not take the others,
or the application, with it: what was finished before stays.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from dfs_deploy.bundle import Bundle
from dfs_deploy.errors import BundleError, EngineError, EnvironmentLacksError
from dfs_deploy.files import sha256, whole_file
from dfs_deploy.runtimes.tensorrt.device import DeviceFacts, device_facts
from dfs_deploy.runtimes.tensorrt.library import tensorrt_version
from dfs_deploy.runtimes.tensorrt.plan import (
    VERSION,
    PlanKey,
    PlanRecord,
    Settings,
    cache_folder,
    load_plan,
    load_settings,
    plan_key,
    save_record,
    save_settings,
    timing_cache,
    written_by,
)
from dfs_deploy.runtimes.tensorrt.wanted import WantedEngine, wanted_engines
from dfs_deploy.runtimes.tensorrt.worker import BuildRequest, Message

Progress = Callable[[str, float], None]

_WORKER = "dfs_deploy.runtimes.tensorrt.worker"


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` did.

    Attributes:
        folder: where the plans lie.
        tensorrt: the version that made them.
        device: that they were made for.
        built: labels of the engines that were built.
        kept: how many engines' plans fitted already.
        weakly_typed: labels of the engines that this TensorRT took as weakly typed networks alone.
        seconds: that it took.
    """

    folder: Path
    tensorrt: str
    device: DeviceFacts
    built: tuple[str, ...]
    kept: int
    weakly_typed: tuple[str, ...]
    seconds: float


def prepare(bundle: Bundle, settings: Settings | None = None, progress: Progress | None = None) -> Prepared:
    """Builds every plan that is missing or does not fit this machine any more.

    Args:
        bundle: with engines for TensorRT.
        settings: what plans are made with; ``None`` for what they were last made with.
        progress: called with what is being built, and how far that is, 0 to 1.

    Raises:
        BundleError: it has no engines for TensorRT.
        EnvironmentLacksError: TensorRT, pycuda or a GPU is missing, or the plans' folder cannot be read or written.
        EngineError: an engine could not be built; the message names it, and what was built before it is kept.
    """
    if "tensorrt" not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for tensorrt; export with --runtime tensorrt")
    return Plans(bundle, device_facts(), settings).build_missing(progress)


class Plans:
    """The plans of a bundle on this machine.

    Args:
        bundle: with engines for TensorRT.
        facts: of the GPU.
        settings: what plans are made with; ``None`` for what they were last made with. What is given is kept.

    Raises:
        EnvironmentLacksError: the folder of the plans is a link, or cannot be read or written; so do the methods.
    """

    def __init__(self, bundle: Bundle, facts: DeviceFacts, settings: Settings | None = None) -> None:
        self.folder = cache_folder(bundle)
        with self._usable_folder():
            self.settings = load_settings(self.folder) if settings is None else settings
            if settings is not None:
                save_settings(self.folder, settings)
        self._bundle, self._facts = bundle, facts
        self.version = tensorrt_version()

    def read(self, engine: WantedEngine) -> bytes:
        """The plan of an engine; built now, where there is none that fits.

        Raises:
            EngineError: it could not be built.
        """
        key = self._key(engine)
        plan = self._load(key)
        if plan is None:
            # What was built, and not what lies there: another process may be building the same plan.
            _, plan = self._build(engine, key, lambda what, share: None)
        return plan

    def ready(self) -> tuple[int, int]:
        """How many engines have a plan that fits, and how many there are."""
        fitting = [self._load(self._key(engine)) is not None for engine in wanted_engines(self._bundle)]
        return sum(fitting), len(fitting)

    def build_missing(self, progress: Progress | None = None) -> Prepared:
        """Builds every plan that there is none of that fits."""
        begin, report = time.perf_counter(), progress or (lambda what, share: None)
        built, weak, kept = [], [], 0
        for engine in wanted_engines(self._bundle):
            key = self._key(engine)
            if self._load(key) is not None:
                kept += 1
                continue
            typing, _ = self._build(engine, key, report)
            built.append(engine.label)
            if typing == "weak":
                weak.append(engine.label)
        took = time.perf_counter() - begin
        return Prepared(self.folder, self.version, self._facts, tuple(built), kept, tuple(weak), took)

    def _key(self, engine: WantedEngine) -> PlanKey:
        return plan_key(self._bundle, engine, self.settings, self._facts, self.version)

    def _load(self, key: PlanKey) -> bytes | None:
        with self._usable_folder():
            return load_plan(self.folder, key)

    def _build(self, engine: WantedEngine, key: PlanKey, report: Progress) -> tuple[str, bytes]:
        """Builds a plan and keeps it; returns how its network was typed, and the plan."""
        begin, what = time.perf_counter(), f"building {engine.label}"
        report(what, 0.0)
        model = self._bundle.read(engine.file)
        workspace = self.settings.workspace_mib
        with self._usable_folder(), whole_file(self.folder / f"{key.name}.plan") as temporary:
            request = BuildRequest(
                label=engine.label,
                precision=engine.precision,
                inputs=key.inputs,
                profiles=key.profiles,
                workspace=None if workspace is None else workspace << 20,
                plan=str(temporary),
                timing_cache=str(timing_cache(self.folder, self._facts, self.version)),
            )
            typing = _run_worker(request, model, lambda share: report(what, share))
            plan = temporary.read_bytes()
            if not written_by(plan, self.version):
                raise EngineError(
                    f"{engine.label}: what TensorRT {self.version} built does not begin as its plans do; report it"
                )
        seconds = time.perf_counter() - begin
        with self._usable_folder():
            save_record(self.folder, PlanRecord(VERSION, engine.label, key, sha256(plan), typing, seconds))
        report(what, 1.0)
        return typing, plan

    @contextlib.contextmanager
    def _usable_folder(self) -> Iterator[None]:
        """Makes errors of files and processes ours: none of them is the GPU's."""
        try:
            yield
        except BrokenPipeError:
            raise  # of whoever was shown the progress
        except OSError as error:
            seen = error.strerror or str(error)
            raise _unusable(self.folder, f"{error.filename}: {seen}" if error.filename else seen) from error


def _run_worker(request: BuildRequest, model: bytes, report: Callable[[float], None]) -> str:
    """Builds in a process of its own; returns how the network was typed."""
    done: Message | None = None
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as log:
        given.write(msgspec.json.encode(request) + b"\n" + model)
        given.seek(0)
        command = [sys.executable, "-m", _WORKER]
        with subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=log) as process:  # noqa: S603 (ours)
            assert process.stdout is not None  # noqa: S101 (it is a pipe)
            try:
                for line in process.stdout:
                    done = msgspec.json.decode(line, type=Message)
                    report(done.share)
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0 and done is not None and done.typing:
            return done.typing
        if done is not None and done.files:
            raise _unusable(Path(request.plan).parent, done.error)
        raise EngineError(f"{request.label} could not be built: {_why(process.returncode, done, log)}")


def _unusable(folder: Path, seen: str) -> EnvironmentLacksError:
    return EnvironmentLacksError(
        f"the plans cannot be built and kept in {folder} ({seen}); make it a folder that can be read and written, with"
        " space left"
    )


def _why(code: int, last: Message | None, log: IO[bytes]) -> str:
    if last is not None and last.error:
        return last.error
    if code == -signal.SIGKILL:
        return "its process was killed, as the kernel does when memory runs out; free memory, or lower --workspace"
    if code < 0:
        return f"TensorRT crashed ({signal.Signals(-code).name}); update TensorRT, or leave this precision out"
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}"
