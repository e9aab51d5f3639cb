"""Building plans, one at a time, each in a process of its own.

The builder takes gigabytes of host memory, and a build that the kernel kills or that crashes must not take the others,
or the application, with it: what was finished before stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import TENSORRT, Cache, UnkeptError
from dfs_deploy.errors import BundleError, EngineError, EnvironmentLacksError
from dfs_deploy.io.files import nameless_file, sha256
from dfs_deploy.runtimes.tensorrt.device import DeviceFacts, device_facts
from dfs_deploy.runtimes.tensorrt.library import tensorrt_version
from dfs_deploy.runtimes.tensorrt.plan import (
    VERSION,
    PlanKey,
    PlanRecord,
    Settings,
    load_plan,
    load_settings,
    plan_key,
    save_plan,
    save_settings,
    timing_cache,
    written_by,
)
from dfs_deploy.runtimes.tensorrt.wanted import WantedEngine, wanted_engines
from dfs_deploy.runtimes.tensorrt.worker import BuildRequest, Message

Progress = Callable[[str, float], None]

_WORKER = (
    "import os, sys; sys.path[:] = sys.argv.pop().split(os.pathsep);"
    " from dfs_deploy.runtimes.tensorrt.worker import main; main()"
)
"""Imports what this process would, and nothing from the current directory that this process would not."""


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


def prepare(
    bundle: Bundle, settings: Settings | None = None, progress: Progress | None = None, cache: Cache | None = None
) -> Prepared:
    """Builds every plan that is missing or does not fit this machine any more, and keeps it.

    Args:
        bundle: with engines for TensorRT.
        settings: what plans are made with; ``None`` for what they were last made with.
        progress: called with what is being built, and how far that is, 0 to 1.
        cache: of the bundle; ``None`` for the usual one.

    Raises:
        BundleError: it has no engines for TensorRT.
        EnvironmentLacksError: TensorRT, pycuda or a GPU is missing, or nothing can be kept.
        EngineError: an engine could not be built; the message names it, and what was built before it is kept.
    """
    if "tensorrt" not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for tensorrt; export with --runtime tensorrt")
    plans = Plans(bundle, device_facts(), settings, cache)
    if plans.unkept:  # before the work that would be lost
        raise EnvironmentLacksError(
            f"the plans cannot be kept ({plans.unkept}); make the folder one that can be written, or name another with"
            " --cache-dir"
        )
    return plans.build_missing(progress)


class Plans:
    """The plans of a bundle on this machine.

    Args:
        bundle: with engines for TensorRT.
        facts: of the GPU.
        settings: what plans are made with; ``None`` for what they were last made with. What is given is kept.
        cache: of the bundle; ``None`` for the usual one.

    Attributes:
        unkept: why what is built is not kept, but held in memory; empty if it is kept.
    """

    def __init__(
        self, bundle: Bundle, facts: DeviceFacts, settings: Settings | None = None, cache: Cache | None = None
    ) -> None:
        self._cache = Cache(bundle) if cache is None else cache
        self._bundle, self._facts = bundle, facts
        self.unkept = self._cache.why_not(TENSORRT)
        self.folder = self._cache.folder / TENSORRT
        self.settings = load_settings(self._cache) if settings is None else settings
        if settings is not None and not self.unkept:
            with self._keeping(), self._cache.writing(TENSORRT) as folder:
                self.folder = folder
                save_settings(folder, settings)
        self.version = tensorrt_version()

    def read(self, engine: WantedEngine) -> bytes:
        """The plan of an engine; built now, where there is none that fits.

        Raises:
            EngineError: it could not be built.
        """
        return self._obtain(engine, lambda what, share: None)[1]

    def ready(self) -> tuple[int, int]:
        """How many engines have a plan that fits, and how many there are."""
        fitting = [self._load(self._key(engine)) is not None for engine in wanted_engines(self._bundle)]
        return sum(fitting), len(fitting)

    def build_missing(self, progress: Progress | None = None) -> Prepared:
        """Builds every plan that there is none of that fits."""
        begin, report = time.perf_counter(), progress or (lambda what, share: None)
        built, weak, kept = [], [], 0
        for engine in wanted_engines(self._bundle):
            typing, _ = self._obtain(engine, report)
            if not typing:
                kept += 1
                continue
            built.append(engine.label)
            if typing == "weak":
                weak.append(engine.label)
        took = time.perf_counter() - begin
        return Prepared(self.folder, self.version, self._facts, tuple(built), kept, tuple(weak), took)

    def _key(self, engine: WantedEngine) -> PlanKey:
        return plan_key(self._bundle, engine, self.settings, self._facts, self.version)

    def _load(self, key: PlanKey) -> bytes | None:
        return load_plan(self._cache, key)

    def _obtain(self, engine: WantedEngine, report: Progress) -> tuple[str, bytes]:
        """A plan, and how its network was typed if it was built now: by one process, while the others wait."""
        key = self._key(engine)
        plan = self._load(key)
        if plan is not None:
            return "", plan
        with contextlib.ExitStack() as held:
            folder: Path | None = None
            if not self.unkept:
                try:
                    folder = self.folder = held.enter_context(self._cache.writing(TENSORRT))
                except UnkeptError as error:
                    self.unkept = str(error)
            plan = self._load(key)  # another process may have built it meanwhile
            if plan is not None:
                return "", plan
            return self._build(engine, key, folder, report)

    def _build(self, engine: WantedEngine, key: PlanKey, folder: Path | None, report: Progress) -> tuple[str, bytes]:
        """Builds a plan and keeps it where there is a folder; returns how its network was typed, and the plan."""
        begin, what = time.perf_counter(), f"building {engine.label}"
        report(what, 0.0)
        model = self._bundle.read(engine.file)
        workspace = self.settings.workspace_mib
        with nameless_file() as file:
            request = BuildRequest(
                parent=os.getpid(),
                label=engine.label,
                precision=engine.precision,
                inputs=key.inputs,
                profiles=key.profiles,
                workspace=None if workspace is None else workspace << 20,
                plan=file.fileno(),
                timing_cache=None if folder is None else str(timing_cache(folder, self._facts, self.version)),
            )
            typing = _run_worker(request, model, lambda share: report(what, share))
            file.seek(0)
            plan = file.read()
        if not written_by(plan, self.version):
            raise EngineError(
                f"{engine.label}: what TensorRT {self.version} built does not begin as its plans do; report it"
            )
        if folder is not None:
            seconds = time.perf_counter() - begin
            record = PlanRecord(VERSION, engine.label, key, sha256(plan), typing, seconds)
            with self._keeping():
                save_plan(folder, record, plan)
        report(what, 1.0)
        return typing, plan

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Notes why something cannot be kept; what was built is held in memory all the same."""
        try:
            yield
        except OSError as error:
            seen = error.strerror or str(error)
            self.unkept = f"{error.filename}: {seen}" if error.filename else seen


def _run_worker(request: BuildRequest, model: bytes, report: Callable[[float], None]) -> str:
    """Builds in a process of its own; returns how the network was typed."""
    done: Message | None = None
    command, handles = [sys.executable, "-c", _WORKER, os.pathsep.join(sys.path)], (request.plan,)
    with nameless_file() as given, nameless_file() as log:
        given.write(msgspec.json.encode(request) + b"\n" + model)
        given.seek(0)
        with subprocess.Popen(  # noqa: S603 (ours)
            command, stdin=given, stdout=subprocess.PIPE, stderr=log, pass_fds=handles
        ) as process:
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
        raise EngineError(f"{request.label} could not be built: {_why(process.returncode, done, log)}")


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
