"""Loading a bundle's engines into ONNX Runtime: one session per file, and no thread pool that nobody asked for.

With more than one thread each session has a pool of its own. ONNX Runtime can give all sessions one pool, but then it
refuses any session of the process that wants its own, also the application's; that is the application's choice
(``onnxruntime.set_global_thread_pool_sizes``), and is followed here. A deep network has hundreds of sessions, so how
many threads an engine gets is bounded by what all pools together may take.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import Engine, Layout
from dfs_deploy.errors import BundleError, EnvironmentLacksError, OutOfMemoryError
from dfs_deploy.io.files import sha256
from dfs_deploy.runtimes.base import Substitution, serving
from dfs_deploy.runtimes.gate import GateWeights
from dfs_deploy.runtimes.gate_weights import gate_weights
from dfs_deploy.runtimes.onnxruntime.binding import has_global_pool, laid_out, open_session, session_options
from dfs_deploy.runtimes.onnxruntime.plan import Plan, PlanEntry
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines
from dfs_deploy.system.cpu import has_fast_float16
from dfs_deploy.system.ort import onnxruntime as ort

MOST_POOLED = 384
"""Most threads in the pools of one network's sessions, together."""

_SPARE_THREADS = 16
"""Threads that must be startable beside those of the pools: ONNX Runtime may hang where a pool cannot be filled."""


_LEAST_MEMORY = 2 << 20


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready to run.

    Attributes:
        label: what messages call it, as in ``block 3, option 8 (int8)``.
        output: the layout in which it leaves its features.
        sessions: a session for each layout in which features may arrive.
    """

    label: str
    output: Layout
    sessions: dict[Layout, ort.InferenceSession]


@dataclass(frozen=True)
class LoadedBlock:
    """A gated block: an engine by option index, ``None`` where the option passes features on untouched."""

    options: tuple[LoadedEngine | None, ...]


@dataclass(frozen=True)
class LoadedEngines:
    """All that the clones of a runtime share; nothing in it changes after loading.

    Attributes:
        stem: before the blocks.
        blocks: the gated blocks.
        head: after them.
        gate: its weights.
        feature_scales: what one step of uint8 is worth, by block.
        substitutions: decided here.
        threads: that each engine has.
        pools: whose threads they are, in words; empty if every engine runs in the calling thread.
        prepared: engines that run instead of the bundle's.
    """

    stem: LoadedEngine
    blocks: tuple[LoadedBlock, ...]
    head: LoadedEngine
    gate: GateWeights
    feature_scales: tuple[float, ...]
    substitutions: tuple[Substitution, ...]
    threads: int
    pools: str
    prepared: PreparedEngines


def load_engines(
    bundle: Bundle, threads: int, plan: Plan | None = None, prepared: PreparedEngines = PLAIN
) -> LoadedEngines:
    """Makes a session of every engine that runs here.

    Args:
        bundle: with a gate; its digests are checked once more as each file is read.
        threads: that one engine may use.
        plan: which engine serves which option; ``None`` for the least precise that the CPU is made for.
        prepared: engines to run instead of the bundle's.

    Raises:
        BundleError: a file is no model that ONNX Runtime takes.
        DamagedError: a prepared engine is not what was kept.
        OutOfMemoryError: there is not the memory for them.
        EnvironmentLacksError: so many threads cannot be started here.
    """
    engines, architecture = bundle.manifest.runtimes["onnxruntime"], bundle.architecture
    assert engines.gate is not None  # noqa: S101 (a network without one has a policy, whose path is one engine)
    session = open_session(bundle.read(engines.gate), f"{bundle.path}: {engines.gate}", session_options(1))
    gate = gate_weights(session, bundle)
    substitutions = decided_substitutions(bundle, plan)
    running = [engines.stem, engines.head, *_running(bundle, substitutions)]
    digests = {prepared.digest(f) or bundle.manifest.files[f].sha256 for e in running for f in e.files.values()}
    threads, pools = affordable_threads(bundle, threads, len(digests))
    loader = _Loader(bundle, threads, prepared)
    maps = [block.out_shape for block in architecture.blocks]
    blocks = []
    for block in engines.blocks:
        sizes = maps[block.index - 1 : block.index + 1]
        options: list[LoadedEngine | None] = []
        for option in bundle.options:
            label = f"block {block.index}, option {option.name}"
            if option.skips:
                options.append(None if block.skip is None else loader.engine(block.skip, label, *sizes))
                continue
            chosen = serving(block, option.name, substitutions)
            options.append(loader.engine(chosen, f"{label} ({chosen.precision})", *sizes))
        blocks.append(LoadedBlock(tuple(options)))
    return LoadedEngines(
        stem=loader.engine(engines.stem, "stem", architecture.image_shape, maps[0]),
        blocks=tuple(blocks),
        head=loader.engine(engines.head, "head", maps[-1], (architecture.classes,)),
        gate=gate,
        feature_scales=tuple(engines.feature_scales),
        substitutions=substitutions,
        threads=threads,
        pools=pools,
        prepared=prepared.loaded(),
    )


def check_memory(bundle: Bundle) -> None:
    """Asks for less memory than any load takes: where even that is missing, ONNX Runtime may crash.

    Raises:
        OutOfMemoryError: it is missing.
    """
    try:
        mmap.mmap(-1, _LEAST_MEMORY + bundle.size // 2).close()
    except (OSError, MemoryError) as error:
        raise OutOfMemoryError(
            f"memory ran out before {bundle.path} was loaded; free some, or raise its limit"
        ) from error


def decided_substitutions(bundle: Bundle, plan: Plan | None) -> tuple[Substitution, ...]:
    """Which option is served by an engine of another precision than its own, by a plan or by what the CPU is made for.

    Those that differ in the block alone are one.
    """
    blocks: dict[tuple[str, str, str, str], list[int]] = {}
    for block in bundle.manifest.runtimes["onnxruntime"].blocks:
        for option in (option.name for option in bundle.options if option.name in block.options):
            wanted, *fallbacks = block.options[option]
            planned = None if plan is None else plan.chosen(block.index, option)
            chosen, reason = _choose(wanted, fallbacks, planned)
            if reason:
                blocks.setdefault((option, wanted.precision, chosen.precision, reason), []).append(block.index)
    return tuple(Substitution(*key, blocks=tuple(indices)) for key, indices in blocks.items())


def _running(bundle: Bundle, substitutions: Sequence[Substitution]) -> Iterator[Engine]:
    """The engines that the gate may choose."""
    for block in bundle.manifest.runtimes["onnxruntime"].blocks:
        yield from () if block.skip is None else (block.skip,)
        yield from (serving(block, option, substitutions) for option in block.options)


def described(threads: int, pools: str, gate: str, planned: bool, layout: str) -> dict[str, Any]:
    """Plain facts of a backend for reports; see :attr:`dfs_deploy.runtimes.base.Backend.description`."""
    return {
        "runtime": "onnxruntime",
        "version": ort.__version__,
        "provider": "CPUExecutionProvider",
        "threads": threads,
        "pools": pools or "none: the calling thread alone",
        "gate": gate,
        "plan": "measured here" if planned else "none",
        "layout": layout,
    }


def affordable_threads(bundle: Bundle, threads: int, sessions: int) -> tuple[int, str]:
    """Threads per engine, so that all pools together stay within bounds, and what is to be said of the pools.

    Args:
        bundle: for messages.
        threads: wanted for each engine.
        sessions: engines that are to be loaded. One session was opened before: an application's pool is known then.

    Raises:
        EnvironmentLacksError: so many threads cannot be started here.
    """
    if threads == 1:
        return 1, ""
    if has_global_pool():
        return threads, "one for the process, as the application chose"
    given = min(threads, 1 + MOST_POOLED // sessions)
    _check_startable(sessions * (given - 1), bundle)
    pools = f"{sessions} engine(s), {given - 1} thread(s) each beside the calling one"
    return given, pools if given == threads else f"{pools}; {threads} threads an engine would be too many"


def _check_startable(count: int, bundle: Bundle) -> None:
    """Starts as many threads as the pools will have, and ends them."""
    if not count:
        return
    leave, started = threading.Event(), []
    try:
        for _ in range(count + _SPARE_THREADS):
            thread = threading.Thread(target=leave.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise EnvironmentLacksError(
            f"{bundle.path} takes pools of {count} threads here and only {len(started)} could be started: a limit on"
            " processes or memory (ulimit -u, ulimit -v, a container's pids limit) is reached; give --threads 1, or"
            " raise it"
        ) from error
    finally:
        leave.set()
        for thread in started:
            thread.join()


def _choose(wanted: Engine, fallbacks: list[Engine], planned: PlanEntry | None) -> tuple[Engine, str]:
    """The engine that serves an option here, and why that is another than its own."""
    if planned is not None:
        chosen = next((e for e in (wanted, *fallbacks) if e.precision == planned.chosen), wanted)
        return chosen, "" if chosen is wanted else "slower here than the more precise engine"
    if wanted.precision == "fp16" and fallbacks and not has_fast_float16():
        return fallbacks[0], "this CPU has no fast float16"
    return wanted, ""


class _Loader:
    """Makes sessions; files with the same content share one."""

    def __init__(self, bundle: Bundle, threads: int, prepared: PreparedEngines) -> None:
        self._bundle = bundle
        self._prepared = prepared
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._options = session_options(threads)

    def engine(self, engine: Engine, label: str, takes: tuple[int, ...], gives: tuple[int, ...]) -> LoadedEngine:
        """Loads every variant of an engine, from features of one size, without the batch, to another."""
        sessions = {layout: self.session(file) for layout, file in engine.files.items()}
        for layout, session in sessions.items():
            given = laid_out(gives, engine.output) if len(gives) == 3 else gives
            check_ends(self._bundle, label, session, (layout, laid_out(takes, layout)), (engine.output, given))
        return LoadedEngine(label, engine.output, sessions)

    def session(self, file: str) -> ort.InferenceSession:
        data = self._prepared.read(file) or self._bundle.read(file)
        digest = sha256(data)
        if digest not in self._sessions:
            self._sessions[digest] = open_session(data, f"{self._bundle.path}: {file}", self._options)
        return self._sessions[digest]


def check_ends(
    bundle: Bundle,
    label: str,
    session: ort.InferenceSession,
    takes: tuple[Layout, tuple[int, ...]],
    gives: tuple[Layout, tuple[int, ...]],
) -> None:
    """Checks that an engine has one input and one output, each of a layout and a size.

    Args:
        bundle: that it was made of, for messages.
        label: what messages call it.
        session: of it.
        takes: layout and size, without the batch, of its input.
        gives: of its output.

    Raises:
        BundleError: it takes or gives something else.
    """
    try:
        ends = (session.get_inputs(), takes), (session.get_outputs(), gives)
    except UnicodeDecodeError as error:
        raise BundleError(f"{bundle.path}: a name in the engine of {label} is no UTF-8; export it again") from error
    for values, (layout, size) in ends:
        kind = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[layout]
        if len(values) != 1 or values[0].type != kind or tuple(values[0].shape[1:]) != size:
            raise BundleError(
                f"{bundle.path}: the engine of {label} takes or gives something else than {layout} of (N, *{size});"
                " export it again"
            )
