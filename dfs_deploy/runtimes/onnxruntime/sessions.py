"""Loading a bundle's engines into ONNX Runtime: one session per file, and no thread pool that nobody asked for.

With more than one thread each session has a pool of its own. ONNX Runtime can give all sessions one pool, but then it
refuses any session of the process that wants its own, also the application's; that is the application's choice
(``onnxruntime.set_global_thread_pool_sizes``), and is followed here. A deep network has hundreds of sessions, so how
many threads an engine gets is bounded by what all pools together may take.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dfs_deploy.bundle import Bundle
from dfs_deploy.cpu import has_fast_float16
from dfs_deploy.errors import BundleError, EnvironmentLacksError, OutOfMemoryError
from dfs_deploy.files import sha256
from dfs_deploy.manifest import BlockEngines, Engine, Form
from dfs_deploy.ort import onnxruntime as ort
from dfs_deploy.runtimes.base import Substitution
from dfs_deploy.runtimes.gate import GateWeights
from dfs_deploy.runtimes.gate_weights import gate_weights
from dfs_deploy.runtimes.onnxruntime.binding import has_global_pool, laid_out, open_session, session_options
from dfs_deploy.runtimes.onnxruntime.plan import Plan, PlanEntry
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines

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
        output: the form in which it leaves its features.
        sessions: a session for each form in which features may arrive.
    """

    label: str
    output: Form
    sessions: dict[Form, ort.InferenceSession]


@dataclass(frozen=True)
class LoadedBlock:
    """A gated block: an engine by option index, ``None`` where the option passes features on untouched.

    An option that a static policy leaves out has an engine without sessions.
    """

    options: tuple[LoadedEngine | None, ...]


@dataclass(frozen=True)
class LoadedEngines:
    """All that the clones of a runtime share; nothing in it changes after loading.

    Attributes:
        stem: before the blocks.
        blocks: the gated blocks.
        head: after them.
        gate: its weights; ``None`` with a static policy.
        feature_scales: what one step of uint8 is worth, by block.
        substitutions: decided here.
        threads: that each engine has.
        pools: whose threads they are, in words; empty if every engine runs in the calling thread.
        prepared: engines that run instead of the bundle's.
    """

    stem: LoadedEngine
    blocks: tuple[LoadedBlock, ...]
    head: LoadedEngine
    gate: GateWeights | None
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
        bundle: the bundle; its digests are checked once more as each file is read.
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
    first = engines.gate or engines.stem.files["float32"]
    session = open_session(bundle.read(first), f"{bundle.path}: {first}", session_options(1))
    gate = None if engines.gate is None else gate_weights(session, bundle)
    threads, pools = (1, "") if threads == 1 else _affordable(bundle, threads, plan, prepared)
    loader = _Loader(bundle, threads, prepared)
    maps = [(shape.out_channels, *shape.out_size) for shape in architecture.block_shapes()]
    substituted = _Substitutions()
    blocks = []
    for block in engines.blocks:
        sizes = maps[block.index - 1 : block.index + 1]
        options: list[LoadedEngine | None] = []
        for option in bundle.options:
            label = f"block {block.index}, option {option.name}"
            if not _on_policy(bundle, block.index, option.name):
                options.append(LoadedEngine(label, "float32", {}))
                continue
            if option.skips:
                options.append(None if block.skip is None else loader.engine(block.skip, label, *sizes))
                continue
            wanted, chosen, reason = _chosen(block, option.name, plan)
            if reason:
                substituted.add(option.name, wanted.precision, chosen.precision, reason, block.index)
            options.append(loader.engine(chosen, f"{label} ({chosen.precision})", *sizes))
        blocks.append(LoadedBlock(tuple(options)))
    return LoadedEngines(
        stem=loader.engine(engines.stem, "stem", architecture.image_shape, maps[0]),
        blocks=tuple(blocks),
        head=loader.engine(engines.head, "head", maps[-1], (architecture.classes,)),
        gate=gate,
        feature_scales=tuple(engines.feature_scales),
        substitutions=substituted.collected(),
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


def _on_policy(bundle: Bundle, block: int, option: str) -> bool:
    policy = bundle.manifest.policy
    return policy is None or policy[block - 1] == option


def _affordable(bundle: Bundle, threads: int, plan: Plan | None, prepared: PreparedEngines) -> tuple[int, str]:
    """Threads per engine, so that all pools together stay within bounds, and what is to be said of the pools.

    Raises:
        EnvironmentLacksError: so many threads cannot be started here.
    """
    if has_global_pool():
        return threads, "one for the process, as the application chose"
    engines = bundle.manifest.runtimes["onnxruntime"]
    running = [engines.stem, engines.head]
    for block in engines.blocks:
        for option in bundle.options:
            if _on_policy(bundle, block.index, option.name):
                engine = block.skip if option.skips else _chosen(block, option.name, plan)[1]
                running += [] if engine is None else [engine]
    sessions = len({prepared.digest(f) or bundle.manifest.files[f].sha256 for e in running for f in e.files.values()})
    given = min(threads, 1 + MOST_POOLED // sessions)
    _check_startable(sessions * (given - 1), bundle)
    pools = f"{sessions} engines, {given - 1} thread(s) each beside the calling one"
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


def _chosen(block: BlockEngines, option: str, plan: Plan | None) -> tuple[Engine, Engine, str]:
    """An option's own engine, the one that serves it here, and why that is another."""
    wanted, *fallbacks = block.options[option]
    return wanted, *_choose(wanted, fallbacks, None if plan is None else plan.chosen(block.index, option))


def _choose(wanted: Engine, fallbacks: list[Engine], planned: PlanEntry | None) -> tuple[Engine, str]:
    if planned is not None:
        chosen = next((e for e in (wanted, *fallbacks) if e.precision == planned.chosen), wanted)
        return chosen, "" if chosen is wanted else "slower here than the more precise engine"
    if wanted.precision == "fp16" and fallbacks and not has_fast_float16():
        return fallbacks[0], "this CPU has no fast float16"
    return wanted, ""


class _Substitutions:
    """Collects substitutions block by block, and merges those that differ in the block alone."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str, str, str], list[int]] = {}

    def add(self, option: str, wanted: str, served_by: str, reason: str, block: int) -> None:
        self._blocks.setdefault((option, wanted, served_by, reason), []).append(block)

    def collected(self) -> tuple[Substitution, ...]:
        return tuple(Substitution(*key, blocks=tuple(blocks)) for key, blocks in self._blocks.items())


class _Loader:
    """Makes sessions; files with the same content share one."""

    def __init__(self, bundle: Bundle, threads: int, prepared: PreparedEngines) -> None:
        self._bundle = bundle
        self._prepared = prepared
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._options = session_options(threads)

    def engine(self, engine: Engine, label: str, takes: tuple[int, ...], gives: tuple[int, ...]) -> LoadedEngine:
        """Loads every variant of an engine, from features of one size, without the batch, to another."""
        sessions = {form: self.session(file) for form, file in engine.files.items()}
        for form, session in sessions.items():
            given = laid_out(gives, engine.output) if len(gives) == 3 else gives
            try:
                inputs, outputs = session.get_inputs(), session.get_outputs()
            except UnicodeDecodeError as error:
                raise BundleError(
                    f"{self._bundle.path}: a name in the engine of {label} is no UTF-8; export it again"
                ) from error
            self._check(label, inputs, form, laid_out(takes, form))
            self._check(label, outputs, engine.output, given)
        return LoadedEngine(label, engine.output, sessions)

    def session(self, file: str) -> ort.InferenceSession:
        data = self._prepared.read(file) or self._bundle.read(file)
        digest = sha256(data)
        if digest not in self._sessions:
            self._sessions[digest] = open_session(data, f"{self._bundle.path}: {file}", self._options)
        return self._sessions[digest]

    def _check(self, label: str, values: Sequence[Any], form: Form, size: tuple[int, ...]) -> None:
        kind = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[form]
        if len(values) != 1 or values[0].type != kind or tuple(values[0].shape[1:]) != size:
            raise BundleError(
                f"{self._bundle.path}: the engine of {label} takes or gives something else than {form} of (N, *{size});"
                " export it again"
            )
