"""Loading a bundle's engines into ONNX Runtime: one session per file, and no thread pool that nobody asked for.

With more than one thread, each session has a pool of its own. ONNX Runtime can give all sessions one pool, but then it
refuses any session of the process that wants its own, also the application's; that is the application's choice
(``onnxruntime.set_global_thread_pool_sizes``), and is followed here. A deep network has hundreds of sessions, so the
number of threads per engine is bounded by what all pools together may take.
"""

from __future__ import annotations

import functools
import itertools
import logging
import mmap
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.bundle.engines import FeatureGrid, PlacedEngine, Size, feature_grids, laid_out
from dfs_deploy.bundle.manifest import Layout
from dfs_deploy.errors import BundleError, EnvironmentLacksError, OutOfMemoryError
from dfs_deploy.io.files import sha256
from dfs_deploy.network import Architecture
from dfs_deploy.options import Options
from dfs_deploy.runtimes.backend import BackendOptions, Substitution, running_engines
from dfs_deploy.runtimes.gate import GateWeights, read_gate_weights
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER, Converters
from dfs_deploy.runtimes.onnxruntime.engine_choice import decide_substitutions, load_choice
from dfs_deploy.runtimes.onnxruntime.entry import Entry, split_entry
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines, load_prepared, prepare_engines
from dfs_deploy.runtimes.onnxruntime.sessions import has_global_pool, open_session, session_options
from dfs_deploy.system.memory import return_freed_memory
from dfs_deploy.system.ort import onnxruntime as ort
from dfs_deploy.system.threads import in_threads

_LOG = logging.getLogger(__name__)

MAX_POOLED = 384
"""Most threads in the pools of one network's sessions, together."""

_SPARE_THREADS = 16
"""Threads that must be startable besides those of the pools: ONNX Runtime may hang if a pool cannot be filled."""

_LEAST_MEMORY = 2 << 20
_FLOAT32: Layout = "float32"


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready to run.

    Attributes:
        label: name in messages, as in ``block 3, option 8 (int8)``.
        output: layout of the features that it leaves.
        sessions: session for each layout of the features that it takes.
    """

    label: str
    output: Layout
    sessions: dict[Layout, ort.InferenceSession]


@dataclass(frozen=True)
class LoadedEngines:
    """Everything that the clones of a runtime share; it does not change after loading.

    Attributes:
        architecture: network.
        options: options that its gate chooses from.
        gate: weights of the gate.
        stem: engine of the stem and the first block.
        entry: way from images to its input.
        blocks: for each block after the first, its engine by option index; ``None`` if the option passes features on
            untouched, or is none that the block may run.
        head: engine of the head.
        grids: grid of uint8 features, by block, the first included.
        converters: conversions of features between layouts.
        channel_block: channels that lie together in float32 features.
        threads: threads of each engine.
        substitutions: options that run on an engine of another precision.
        description: plain facts for reports; see ``describe``.
    """

    architecture: Architecture
    options: Options
    gate: GateWeights
    stem: LoadedEngine
    entry: Entry
    blocks: tuple[tuple[LoadedEngine | None, ...], ...]
    head: LoadedEngine
    grids: tuple[FeatureGrid, ...]
    converters: Converters
    channel_block: int
    threads: int
    substitutions: tuple[Substitution, ...]
    description: dict[str, Any]


def load_engines(bundle: Bundle, options: BackendOptions) -> LoadedEngines:
    """Makes a session of every engine that can run here.

    Args:
        bundle: bundle with a gate; its digests are checked again as each file is read.
        options: choices of how it runs.

    Raises:
        BundleError: the bundle has no gate, or a file is no model that ONNX Runtime takes.
        OutOfMemoryError: there is not enough memory for them.
        EnvironmentLacksError: so many threads cannot be started here.
    """
    check_memory(bundle)
    gate = read_gate_weights(bundle, "onnxruntime")
    if gate is None:
        raise BundleError(f"{bundle.path} has a static policy, and no gate")
    cache = Cache(bundle, options.cache_dir)
    prepared = PLAIN
    if options.prepared:
        prepared = load_prepared(bundle, cache) or prepare_engines(bundle, cache=cache)
    wanted = options.threads or 1
    choice = load_choice(bundle, wanted, prepared.channel_block, cache) if options.plan else None
    substitutions = decide_substitutions(bundle, choice)
    for each in substitutions:
        _LOG.info("%s: option %s runs in %s: %s", bundle.path, each.option, each.served_by, each.reason)
    running = list(running_engines(bundle, "onnxruntime", substitutions))
    reached = list(reached_layouts(bundle, running))
    content = {content_of(bundle, placed.engine.files[each], prepared) for placed, some in reached for each in some}
    sessions = len(content)
    threads, pools = affordable_threads(bundle, wanted, sessions)
    loader = EngineLoader(bundle, threads, prepared)
    stem, entry = loader.load_stem(running[0])
    *gated, (_, head) = zip(running[1:], loader.load_all(reached[1:]), strict=True)
    index = {name: i for i, name in enumerate(bundle.options.names)}
    blocks: list[list[LoadedEngine | None]] = [[None] * len(index) for _ in range(bundle.architecture.gated_blocks)]
    for placed, engine in gated:
        if placed.block is not None:
            blocks[placed.block - 1][index[placed.option]] = engine
    _LOG.info("%s: %d engines in %d sessions, %s", bundle.path, len(running), sessions, prepared.description)
    return LoadedEngines(
        architecture=bundle.architecture,
        options=bundle.options,
        gate=gate,
        stem=stem,
        entry=entry,
        blocks=tuple(map(tuple, blocks)),
        head=head,
        grids=feature_grids(bundle, "onnxruntime"),
        converters=loader.converters,
        channel_block=prepared.channel_block,
        threads=threads,
        substitutions=substitutions,
        description=describe(threads, pools, "", choice is not None, prepared.description),
    )


class EngineLoader:
    """Makes sessions; files with the same content share one.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        threads: threads that one engine may use.
        prepared: engines that run instead of the bundle's.

    Attributes:
        converters: conversions of features between the layouts that these engines take and leave.
    """

    def __init__(self, bundle: Bundle, threads: int, prepared: PreparedEngines) -> None:
        self.converters = Converters(feature_grids(bundle, "onnxruntime"), prepared.channel_block)
        self._bundle = bundle
        self._prepared = prepared
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._options = session_options(threads)

    def load_all(self, placed: Sequence[tuple[PlacedEngine, Collection[Layout]]]) -> list[LoadedEngine]:
        """Loads engines, each for some of the layouts that it takes, in several threads.

        ONNX Runtime works on one model in one thread, without Python's lock. What it freed goes back to the system.
        """
        files: dict[str, str] = {}
        for each, layouts in placed:
            for layout in layouts:
                file = each.engine.files[layout]
                files.setdefault(content_of(self._bundle, file, self._prepared), file)
        missing = {content: file for content, file in files.items() if content not in self._sessions}
        made = in_threads([functools.partial(self._open, file) for file in missing.values()])
        self._sessions.update(zip(missing, made, strict=True))
        return_freed_memory()
        return [self.load(each, layouts) for each, layouts in placed]

    def load_stem(self, placed: PlacedEngine) -> tuple[LoadedEngine, Entry]:
        """Loads the engine that takes images, with the way to its input."""
        file = placed.engine.files[_FLOAT32]
        name = f"{self._bundle.path}: {file}"
        model, entry = split_entry(self._model(file), self._bundle.input, name)
        session = open_session(model, name, self._options)
        gives = placed.engine.output, placed.gives
        check_ends(self._bundle, placed.label, session, (entry.layout, entry.size), gives)
        return LoadedEngine(placed.label, placed.engine.output, {entry.layout: session}), entry

    def load(self, placed: PlacedEngine, layouts: Collection[Layout] | None = None) -> LoadedEngine:
        """Loads an engine for some of the layouts that it takes; ``None`` for all of them."""
        engine, label = placed.engine, placed.label
        wanted = engine.files if layouts is None else [layout for layout in engine.files if layout in layouts]
        sessions = {layout: self._session(engine.files[layout]) for layout in wanted}
        for layout, session in sessions.items():
            check_ends(self._bundle, label, session, (layout, placed.takes), (engine.output, placed.gives))
        return LoadedEngine(label, engine.output, sessions)

    def _session(self, file: str) -> ort.InferenceSession:
        content = content_of(self._bundle, file, self._prepared)
        if content not in self._sessions:
            self._sessions[content] = self._open(file)
        return self._sessions[content]

    def _open(self, file: str) -> ort.InferenceSession:
        return open_session(self._model(file), f"{self._bundle.path}: {file}", self._options)

    def _model(self, file: str) -> bytes:
        return self._prepared.model(file) or self._bundle.model(file)


def reached_layouts(
    bundle: Bundle, running: Iterable[PlacedEngine]
) -> Iterator[tuple[PlacedEngine, tuple[Layout, ...]]]:
    """Yields each engine with those of its layouts in which features can reach it, if need be after a conversion.

    Args:
        bundle: bundle of the engines.
        running: engines in the order in which they run, all that an option of a block may run.
    """
    blocks, arriving = bundle.architecture.blocks, {_FLOAT32}
    for index, found in itertools.groupby(running, key=lambda placed: placed.block):
        engines = list(found)
        for placed in engines:
            files = placed.engine.files
            yield placed, tuple(sorted({layout if layout in files else OTHER[layout] for layout in arriving}))
        passes = index and blocks[index].skip == "free" and any(o.skips for o in blocks[index].choices(bundle.options))
        arriving = {placed.engine.output for placed in engines} | (arriving if passes else set())


def content_of(bundle: Bundle, file: str, prepared: PreparedEngines) -> str:
    """Digest of the engine that runs for a file; files of the same content share a session."""
    model = prepared.models.get(file)
    return bundle.manifest.files[file].sha256 if model is None else sha256(model)


def check_ends(
    bundle: Bundle,
    label: str,
    session: ort.InferenceSession,
    takes: tuple[Layout, Size],
    gives: tuple[Layout, Size],
) -> None:
    """Checks that an engine has one input and one output, each of a layout and a size.

    Args:
        bundle: bundle of the engine, for messages.
        label: name of the engine in messages.
        session: session of the engine.
        takes: layout and size, channels first, of its input.
        gives: layout and size, channels first, of its output.

    Raises:
        BundleError: it takes or gives something else.
    """
    try:
        ends = (session.get_inputs(), *takes), (session.get_outputs(), *gives)
    except UnicodeDecodeError as error:
        raise BundleError(f"{bundle.path}: a name in the engine of {label} is no UTF-8; export it again") from error
    for values, layout, size in ends:
        kind = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[layout]
        shape = laid_out(size, layout)
        if len(values) != 1 or values[0].type != kind or tuple(values[0].shape[1:]) != shape:
            raise BundleError(
                f"{bundle.path}: the engine of {label} takes or gives something else than {layout} of (N, *{shape});"
                " export it again"
            )


def check_memory(bundle: Bundle) -> None:
    """Asks for less memory than any load takes: if even that is missing, ONNX Runtime may crash.

    Raises:
        OutOfMemoryError: it is missing.
    """
    try:
        mmap.mmap(-1, _LEAST_MEMORY + bundle.size // 2).close()
    except (OSError, MemoryError) as error:
        raise OutOfMemoryError(
            f"memory ran out before {bundle.path} was loaded; free some, or raise its limit"
        ) from error


def affordable_threads(bundle: Bundle, threads: int, sessions: int) -> tuple[int, str]:
    """Bounds the threads per engine, so that all pools together stay within ``MAX_POOLED``.

    Args:
        bundle: bundle that is loaded.
        threads: threads wanted for each engine.
        sessions: number of sessions that will be opened.

    Returns:
        Threads per engine, and a description of the pools.

    Raises:
        EnvironmentLacksError: so many threads cannot be started here.
    """
    if threads == 1:
        return 1, ""
    stem = bundle.manifest.runtimes["onnxruntime"].stem.files["float32"]
    open_session(bundle.model(stem), f"{bundle.path}: {stem}", session_options(1))  # shows if there is a global pool
    if has_global_pool():
        return threads, "one for the process, as the application chose"
    given = min(threads, 1 + MAX_POOLED // sessions)
    _check_startable(sessions * (given - 1), bundle)
    pools = f"{sessions} engine(s), {given - 1} thread(s) each beside the calling one"
    return given, pools if given == threads else f"{pools}; {threads} threads per engine would be too many"


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


def describe(threads: int, pools: str, gate: str, measured: bool, layout: str) -> dict[str, Any]:
    """Plain facts of a backend for reports; see ``Backend.description``."""
    return {
        "runtime": "onnxruntime",
        "version": ort.__version__,
        "provider": "CPUExecutionProvider",
        "threads": threads,
        "pools": pools or "none: only the calling thread",
        "gate": gate,
        "plan": "measured here" if measured else "none",
        "layout": layout,
    }
