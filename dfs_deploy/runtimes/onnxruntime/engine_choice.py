"""Choice of the engine that runs for an option here: a less precise engine that is slower helps nobody.

By default the option's own engine runs, or its FP32 engine if this CPU emulates float16. Measured times can decide
instead. They are measured once on a machine and kept in the bundle's cache (``dfs_deploy.bundle.cache``), under a
key of everything that they depend on; one of another key is never read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import PLAN, Cache, cache_key
from dfs_deploy.bundle.engines import PlacedEngine, engines_of, laid_out
from dfs_deploy.bundle.manifest import Engine, Layout
from dfs_deploy.errors import BundleError
from dfs_deploy.io.files import sha256
from dfs_deploy.io.json_files import MAX_JSON, VersionedFormat
from dfs_deploy.options import PRECISIONS, Precision
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes.backend import Substitution
from dfs_deploy.runtimes.buffers import aligned_buffer
from dfs_deploy.runtimes.onnxruntime.conversion import OTHER
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines
from dfs_deploy.runtimes.onnxruntime.sessions import bind, open_session, session_options
from dfs_deploy.system.cpu import describe_cpu, has_fast_float16
from dfs_deploy.system.ort import onnxruntime as ort

MARGIN = 0.05
"""A more precise engine is chosen only if it is this share faster; a smaller difference is noise."""

_REPEATS = 61


class ChosenEngine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Choice for one option of one block.

    Attributes:
        block: index of the block.
        option: name of the option.
        chosen: precision of the engine that runs.
        median_us: median time of each engine, by precision: standalone, at batch 1, from float32 features if
            the engine takes them.
    """

    block: int
    option: str
    chosen: Precision
    median_us: dict[Precision, float]


class EngineChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured choice of engines.

    Attributes:
        version: version of this format.
        key: conditions of the measurement; see ``choice_key``.
        entries: one entry for each block and option with several engines.
    """

    version: int
    key: dict[str, str]
    entries: list[ChosenEngine]


FORMAT = VersionedFormat(
    "engine choice", EngineChoice, 1, "measure one with bench --save-plan", error=BundleError, version_key="version"
)


def choice_key(bundle: Bundle, threads: int, channel_block: int = 1) -> dict[str, str]:
    """Key of everything that the time of an engine depends on.

    Args:
        bundle: bundle with the engines.
        threads: threads that one engine may use.
        channel_block: channels that lie together in float32 features; see ``prepared.py``.
    """
    return cache_key(
        bundle=bundle.digest,
        cpu=describe_cpu().key,
        threads=str(threads),
        together=str(channel_block),
        onnxruntime=ort.__version__,
    )


def choice_file(key: dict[str, str]) -> str:
    """Name of the file in the cache that holds the choice of a key."""
    return f"{PLAN}{sha256(msgspec.json.encode(key, order='sorted'))[:16]}.json"


def load_choice(
    bundle: Bundle, threads: int, channel_block: int = 1, cache: Cache | None = None
) -> EngineChoice | None:
    """Loads the choice measured on this machine; ``None`` if there is none, or the file is no such choice."""
    key = choice_key(bundle, threads, channel_block)
    name = choice_file(key)
    content = (cache or Cache(bundle)).read(name, MAX_JSON)
    if content is None:
        return None
    try:
        choice = FORMAT.decode(content, Path(name))
    except BundleError:
        return None  # in a cache, an unreadable file counts as none
    return choice if choice.key == key else None


def save_choice(bundle: Bundle, choice: EngineChoice, cache: Cache | None = None) -> Path:
    """Writes a choice, whole, and returns its path.

    Raises:
        OSError: it cannot be kept.
    """
    return (cache or Cache(bundle)).write(choice_file(choice.key), FORMAT.encode(choice))


def measure_choice(
    bundle: Bundle, threads: int, progress: Progress = silent, prepared: PreparedEngines = PLAIN
) -> EngineChoice:
    """Times the engines of every option that has several, in turns, and chooses.

    FP16 engines are timed like the others: on a CPU without fast float16 they lose.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        threads: threads that one engine may use.
        progress: callback.
        prepared: engines that run instead of the bundle's.
    """
    several: dict[tuple[int, str], list[PlacedEngine]] = {}
    for placed in engines_of(bundle, "onnxruntime"):
        if placed.part == "block" and placed.block is not None:
            several.setdefault((placed.block, placed.option), []).append(placed)
    several = {key: engines for key, engines in several.items() if len(engines) > 1}
    entries = []
    for done, ((block, option), engines) in enumerate(several.items(), 1):
        times = time_engines(bundle, engines, threads, prepared)
        medians = dict(zip((placed.engine.precision for placed in engines), times, strict=True))
        entries.append(ChosenEngine(block, option, _fastest(medians), medians))
        progress("measuring engines", done / len(several))
    return EngineChoice(FORMAT.version, choice_key(bundle, threads, prepared.channel_block), entries)


def decide_substitutions(bundle: Bundle, choice: EngineChoice | None) -> tuple[Substitution, ...]:
    """Decides which options run on an engine of another precision than their own.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        choice: measured choice; without one, the properties of the CPU decide.

    Returns:
        One substitution for all blocks in which an option has the same one.
    """
    measured = {} if choice is None else {(entry.block, entry.option): entry.chosen for entry in choice.entries}
    blocks: dict[tuple[str, str, str, str], list[int]] = {}
    for block in bundle.manifest.runtimes["onnxruntime"].blocks:
        for option in (option.name for option in bundle.options if option.name in block.options):
            own, *fallbacks = block.options[option]
            chosen, reason = _chosen(own, fallbacks, measured.get((block.index, option)))
            if chosen is not own:
                blocks.setdefault((option, own.precision, chosen.precision, reason), []).append(block.index)
    return tuple(Substitution(*key, blocks=tuple(indices)) for key, indices in blocks.items())


def _chosen(own: Engine, fallbacks: list[Engine], measured: Precision | None) -> tuple[Engine, str]:
    """The engine that runs for an option, and the reason if it is not the option's own."""
    if measured is not None:
        chosen = next((engine for engine in (own, *fallbacks) if engine.precision == measured), own)
        return chosen, "slower here than the more precise engine"
    if own.precision == "fp16" and fallbacks and not has_fast_float16():
        return fallbacks[0], "this CPU has no fast float16"
    return own, ""


def time_engines(
    bundle: Bundle,
    engines: Sequence[PlacedEngine],
    threads: int,
    prepared: PreparedEngines = PLAIN,
    layout: Layout = "float32",
) -> list[float]:
    """Times engines of one block by themselves at batch 1, in turns so that a change of the machine affects all.

    Args:
        bundle: bundle with engines for ONNX Runtime.
        engines: engines that take and give the same sizes.
        threads: threads that one engine may use.
        prepared: engines that run instead of the bundle's.
        layout: layout in which the features arrive; an engine without a file for it is timed in the other.

    Returns:
        The median time of each engine, in microseconds.
    """
    sources: dict[Layout, np.ndarray[Any, np.dtype[Any]]] = {}
    options = session_options(threads)
    calls = []
    for placed in engines:
        takes = layout if layout in placed.engine.files else OTHER[layout]
        file = placed.engine.files[takes]
        if takes not in sources:
            source = sources[takes] = _buffer(placed.takes, takes)
            values = np.abs(np.random.default_rng(placed.block).normal(size=source.shape))
            source[...] = values if takes == "float32" else 40.0 * values
        session = open_session(prepared.model(file) or bundle.model(file), f"{bundle.path}: {file}", options)
        calls.append(bind(session, sources[takes], _buffer(placed.gives, placed.engine.output)))
    times: list[list[int]] = [[] for _ in calls]
    for repeat in range(_REPEATS):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter_ns()
            call()
            if repeat:  # the first warms up
                taken.append(time.perf_counter_ns() - begin)
    return [float(np.median(taken)) / 1e3 for taken in times]


def _buffer(size: tuple[int, ...], layout: Layout) -> np.ndarray[Any, np.dtype[Any]]:
    return aligned_buffer((1, *laid_out(size, layout)), np.dtype(layout))


def _fastest(medians: dict[Precision, float]) -> Precision:
    """The least precise engine, unless a more precise one is faster by more than the margin."""
    ordered = sorted(medians, key=PRECISIONS.index)
    for i, precision in enumerate(ordered):
        if all(medians[other] > (1.0 - MARGIN) * medians[precision] for other in ordered[i + 1 :]):
            return precision
    return ordered[-1]
