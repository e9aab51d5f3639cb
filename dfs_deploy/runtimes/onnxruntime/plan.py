"""Which engine serves an option here, by measurement: a less precise engine that is slower is of no use to anyone.

A plan is measured once on a machine and kept in the bundle's cache (:mod:`dfs_deploy.bundle.cache`), under a key of all
that it depends on: the bundle's digest, the CPU, the threads, the layout of features and the versions of ONNX Runtime
and of dfs-deploy. One of another key is never read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.cache import PLAN, Cache, cache_key
from dfs_deploy.bundle.manifest import Engine, Layout
from dfs_deploy.errors import BundleError
from dfs_deploy.io.files import sha256
from dfs_deploy.io.json_files import MAX_JSON, MalformedError, decode_json
from dfs_deploy.options import PRECISIONS, Precision
from dfs_deploy.runtimes.onnxruntime.binding import (
    Call,
    aligned_buffer,
    bind,
    laid_out,
    open_session,
    session_options,
)
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, PreparedEngines
from dfs_deploy.system.cpu import describe_cpu
from dfs_deploy.system.ort import onnxruntime as ort

VERSION = 1
MARGIN = 0.05
"""A more precise engine takes over only where it is this share faster; less is noise."""

_REPEATS = 61
_DTYPES: dict[Layout, np.dtype[Any]] = {"float32": np.dtype(np.float32), "uint8": np.dtype(np.uint8)}


class PlanEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One option of one block.

    Attributes:
        block: index of the block.
        option: name of the option.
        chosen: precision of the engine that serves it.
        median_us: by precision, the median time of the engine by itself at batch 1, from float32 features.
    """

    block: int
    option: str
    chosen: Precision
    median_us: dict[Precision, float]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measured plan.

    Attributes:
        version: of this format.
        key: what it was measured on; see :func:`plan_key`.
        entries: one for each block and option with more than one engine.
    """

    version: int
    key: dict[str, str]
    entries: list[PlanEntry]

    def chosen(self, block: int, option: str) -> PlanEntry | None:
        """The entry for an option of a block, or ``None`` where there was nothing to choose."""
        return next((entry for entry in self.entries if (entry.block, entry.option) == (block, option)), None)


def plan_key(bundle: Bundle, threads: int, together: int = 1) -> dict[str, str]:
    """Everything that the time of an engine depends on.

    Args:
        bundle: whose engines they are.
        threads: that one engine may use.
        together: channels that lie together in float32 features; see ``prepared.py``.
    """
    return cache_key(
        bundle=bundle.digest,
        cpu=describe_cpu().key,
        threads=str(threads),
        together=str(together),
        onnxruntime=ort.__version__,
    )


def plan_file(key: dict[str, str]) -> str:
    """Name of the file in the cache that holds the plan of a key."""
    return f"{PLAN}{sha256(msgspec.json.encode(key, order='sorted'))[:16]}.json"


def load_plan(bundle: Bundle, threads: int, together: int = 1, cache: Cache | None = None) -> Plan | None:
    """The plan for this machine, or ``None`` where none was saved, or what lies there is no such plan."""
    key = plan_key(bundle, threads, together)
    content = (cache or Cache(bundle)).read(plan_file(key), MAX_JSON)
    if content is None:
        return None
    try:
        plan = decode_json(content, Plan)
    except MalformedError:
        return None  # of a cache: what cannot be read is as none
    return plan if plan.version == VERSION and plan.key == key else None


def save_plan(bundle: Bundle, plan: Plan, cache: Cache | None = None) -> Path:
    """Writes a plan, whole, and returns where.

    Raises:
        OSError: it cannot be kept.
    """
    content = msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"
    return (cache or Cache(bundle)).write(plan_file(plan.key), content)


def measure_plan(
    bundle: Bundle,
    threads: int,
    progress: Callable[[float], None] | None = None,
    prepared: PreparedEngines = PLAIN,
) -> Plan:
    """Times the engines of every option that has several, interleaved, and chooses.

    FP16 engines are timed like the others: on a CPU without fast float16 they lose.

    Args:
        bundle: with engines for ONNX Runtime.
        threads: that one engine may use.
        progress: called with how far it is, 0 to 1.
        prepared: engines that run instead of the bundle's.
    """
    if "onnxruntime" not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for onnxruntime to time; export with --runtime onnxruntime")
    blocks = bundle.manifest.runtimes["onnxruntime"].blocks
    shapes = bundle.architecture.blocks
    entries = []
    for i, block in enumerate(blocks):
        shape = shapes[block.index]
        source = aligned_buffer((1, *shape.in_shape), _DTYPES["float32"])
        source[...] = np.abs(np.random.default_rng(block.index).normal(size=source.shape))
        out_size = shape.out_shape
        for option, engines in block.options.items():
            if len(engines) > 1:
                medians = _medians(bundle, prepared, engines, source, out_size, threads)
                entries.append(PlanEntry(block.index, option, _choose(medians), medians))
        if progress is not None:
            progress((i + 1) / len(blocks))
    return Plan(VERSION, plan_key(bundle, threads, prepared.together), entries)


def _medians(
    bundle: Bundle,
    prepared: PreparedEngines,
    engines: list[Engine],
    source: NDArray[np.float32],
    out_size: tuple[int, ...],
    threads: int,
) -> dict[Precision, float]:
    options = session_options(threads)
    calls = []
    for engine in engines:
        file = engine.files["float32"]
        session = open_session(prepared.read(file) or bundle.read(file), f"{bundle.path}: {file}", options)
        target = aligned_buffer((1, *laid_out(out_size, engine.output)), _DTYPES[engine.output])
        calls.append(bind(session, source, target))
    return dict(zip((engine.precision for engine in engines), median_us(calls), strict=True))


def median_us(calls: Sequence[Call], repeats: int = _REPEATS) -> list[float]:
    """Median times of some calls, run in turns so that a change of the machine meets them all, in microseconds."""
    times: list[list[int]] = [[] for _ in calls]
    for repeat in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter_ns()
            call()
            if repeat:
                taken.append(time.perf_counter_ns() - begin)
    return [float(np.median(taken)) / 1e3 for taken in times]


def _choose(medians: dict[Precision, float]) -> Precision:
    """The least precise engine that no more precise one beats by more than the margin."""
    ordered = sorted(medians, key=PRECISIONS.index)
    for i, precision in enumerate(ordered):
        if all(medians[other] > (1.0 - MARGIN) * medians[precision] for other in ordered[i + 1 :]):
            return precision
    return ordered[-1]
