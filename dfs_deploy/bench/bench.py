"""What a user runs to decide whether to ship: the dynamic network against static engines of the same backbone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.clock import BURST, NOISY, Case, Timing, median_alone, summarize, time_interleaved
from dfs_deploy.bench.machine import Machine, describe_machine
from dfs_deploy.bundle import Bundle
from dfs_deploy.datasets import Dataset
from dfs_deploy.errors import UsageError
from dfs_deploy.options import PRECISIONS, Options, computation_percentage, engine_precision
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.static import StaticEngine

FORCED_SHARES = (0, 25, 50, 75, 100)
"""Percent of the gated blocks that run, after the protocol of Cocktailer (Zhang et al., OSDI 2023)."""

MAX_INPUTS = 1024


@dataclass(frozen=True)
class CaseResult:
    """One case of a bench.

    Attributes:
        name: ``dfs``, ``static-fp32``, ``static-fp16``, ``static-int8``, or ``dfs-forced-25-int8`` and the like.
        batch: images a call.
        timing: latency of a call.
        engine_ms: of a dynamic case at batch 1, the mean over inputs of the sum of the standalone medians of the
            engines that they ran, in milliseconds.
        gate_us: likewise, the median of one gate step, in microseconds.
        top1: share of right answers, 0 to 1, where labels are known.
        computation_percentage: mean over the inputs, of a dynamic case.
    """

    name: str
    batch: int
    timing: Timing
    engine_ms: float | None = None
    gate_us: float | None = None
    top1: float | None = None
    computation_percentage: float | None = None

    @property
    def throughput_per_s(self) -> float:
        """Images a second at the mean latency."""
        return 1e3 * self.batch / self.timing.mean

    @property
    def dispatch_efficiency(self) -> float | None:
        """Time of the engines alone over the median latency; ``None`` where the engines were not timed."""
        return None if self.engine_ms is None else self.engine_ms / self.timing.p50

    def as_json(self) -> dict[str, Any]:
        """The case under the keys of ``bench --json``."""
        latency = asdict(self.timing)
        iterations = latency.pop("iterations")
        case: dict[str, Any] = {
            "name": self.name,
            "batch": self.batch,
            "latency_ms": latency,
            "throughput_per_s": self.throughput_per_s,
            "iterations": iterations,
        }
        if self.engine_ms is not None:
            case |= {
                "engine_ms": self.engine_ms,
                "gate_us": self.gate_us,
                "dispatch_efficiency": self.dispatch_efficiency,
            }
        if self.top1 is not None:
            case["top1"] = self.top1
        if self.computation_percentage is not None:
            case["computation_percentage"] = self.computation_percentage
        return case


@dataclass(frozen=True)
class BenchResult:
    """A whole bench.

    Attributes:
        device: as asked for.
        threads: that one engine may use.
        seed: of the order of inputs.
        data: name of the inputs.
        inputs: how many different images were run.
        machine: where.
        runtime: provider, version, gate.
        cases: in the order in which they were asked for.
        option_share: for each gated block, the share of inputs that took each option.
    """

    device: str
    threads: int
    seed: int
    data: str
    inputs: int
    machine: Machine
    runtime: dict[str, Any]
    cases: tuple[CaseResult, ...]
    option_share: tuple[tuple[float, ...], ...]

    @property
    def noisy(self) -> tuple[str, ...]:
        """Static cases, which do the same work each time, whose latency varied by more than 2.5 %."""
        return tuple(c.name for c in self.cases if c.name.startswith("static") and c.timing.cov > NOISY)

    def as_json(self) -> dict[str, Any]:
        """The object of ``bench --json``."""
        return {
            "device": self.device,
            "threads": self.threads,
            "seed": self.seed,
            "data": self.data,
            "inputs": self.inputs,
            "machine": asdict(self.machine),
            "runtime": self.runtime,
            "clock": CLOCK,
            "noisy": list(self.noisy),
            "option_share": [list(share) for share in self.option_share],
            "cases": [case.as_json() for case in self.cases],
        }


CLOCK = (
    "one call, from a normalised float32 image in memory to logits in memory; loading, decoding and normalising are"
    f" outside; cases take turns of {BURST} calls; percentiles are linear between samples and no sample is dropped"
)


def run_bench(
    bundle: Bundle,
    data: Dataset | None = None,
    *,
    device: str = "cpu",
    batch: int = 1,
    threads: int = 1,
    plan: bool = True,
    forced: bool = False,
    seed: int = 0,
    min_s: float = 3.0,
    min_iterations: int = 200,
    warm_up_s: float = 0.2,
    progress: Callable[[str, float], None] | None = None,
) -> BenchResult:
    """Times a bundle and its static baselines on the same inputs, turn by turn.

    Args:
        bundle: with engines for ONNX Runtime.
        data: where inputs are drawn from, in a seeded order; ``None`` for the images that the bundle carries.
        device: what is reported; check it with :func:`~dfs_deploy.bench.machine.check_device` first.
        batch: images a call.
        threads: that one engine may use.
        plan: whether to use the plan measured on this machine, if there is one.
        forced: whether to time forced paths as well, with a quarter to all of the gated blocks run.
        seed: of the order.
        min_s: measured seconds a case, on average.
        min_iterations: calls a case, at least.
        warm_up_s: seconds before measuring.
        progress: called with what is being done and how far it is.

    Raises:
        UsageError: no inputs, or fewer than one batch.
    """
    report = progress or (lambda what, share: None)
    if seed < 0:
        raise UsageError(f"seed {seed}, expected 0 or more")
    images, labels, name = _inputs(bundle, data, seed)
    if len(images) < batch:
        raise UsageError(f"{len(images)} images, expected at least one batch of {batch}; give more with --data")
    starts = range(0, len(images) - batch + 1, batch)
    prepared = bundle.input.normalize(images)
    batches = [prepared[start : start + batch] for start in starts]
    with Runtime(bundle, threads=threads, plan=plan) as runtime:
        paths = np.concatenate([runtime(x).path for x in batches])
        cases = [Case("dfs", lambda i: runtime(batches[i]))]
        statics = {}
        for precision in reversed(bundle.manifest.runtimes["onnxruntime"].static):
            statics[f"static-{precision}"] = StaticEngine(bundle, precision, threads)
        for label, engine in statics.items():
            cases.append(Case(label, lambda i, engine=engine: engine(batches[i])))  # type: ignore[misc]
        forced_paths = forced_patterns(bundle.options) if forced else {}
        gated = bundle.architecture.gated_blocks
        rows = {
            label: spread_path(share, option, gated, bundle.options) for label, (share, option) in forced_paths.items()
        }
        for label, row in rows.items():
            whole = np.repeat(row[None], batch, 0)
            cases.append(Case(label, lambda i, whole=whole: runtime(batches[i], path=whole)))  # type: ignore[misc]
        times = time_interleaved(
            cases,
            range(len(batches)),
            warm_up_s=warm_up_s,
            min_s=min_s * len(cases),
            min_iterations=min_iterations,
            progress=functools.partial(report, "timing"),
        )
        report("timing engines alone", 0.0)
        results = []
        for case in cases:
            timing = summarize(times[case.name])
            if case.name in statics:
                static_logits = np.concatenate([statics[case.name](x) for x in batches])
                results.append(CaseResult(case.name, batch, timing, top1=_top1(static_logits, labels)))
                continue
            own = paths if case.name == "dfs" else np.repeat(rows[case.name][None], len(paths), 0)
            engine_ms, gate_us = _engines_alone(runtime, own) if batch == 1 else (None, None)
            logits = np.concatenate([runtime(x).logits for x in batches]) if case.name == "dfs" else None
            results.append(
                CaseResult(
                    case.name,
                    batch,
                    timing,
                    engine_ms,
                    gate_us,
                    None if logits is None else _top1(logits, labels),
                    float(computation_percentage(own, bundle.options.costs).mean(dtype=np.float64)),
                )
            )
        shares = tuple(
            tuple(float(np.mean(paths[:, block] == option)) for option in range(len(bundle.options)))
            for block in range(gated)
        )
        facts = runtime.description
        for engine in statics.values():
            engine.close()
    return BenchResult(device, threads, seed, name, len(paths), describe_machine(), facts, tuple(results), shares)


def forced_patterns(options: Options) -> dict[str, tuple[int, int]]:
    """The forced cases: by name, the percent of gated blocks that run and the index of the option that they run.

    One series for the least and one for the most precise option that computes, named by the precision of their engines,
    and one alone where that is the same; an option list without skip has none.
    """
    if not any(option.skips for option in options):
        return {}
    computing = sorted((i for i, option in enumerate(options) if not option.skips), key=lambda i: options[i].bits)
    ends = {engine_precision(options[i], PRECISIONS): i for i in (computing[0], computing[-1])}
    return {f"dfs-forced-{share}-{precision}": (share, i) for precision, i in ends.items() for share in FORCED_SHARES}


def spread_path(share: int, option: int, blocks: int, options: Options) -> NDArray[np.uint8]:
    """A path that runs a share of the gated blocks, evenly spread, and skips the rest.

    Args:
        share: percent of the blocks to run.
        option: index of the option that they run.
        blocks: gated blocks.
        options: of the bundle, with one that skips.

    Returns:
        (blocks,) uint8 option indices.
    """
    skip = next(i for i, candidate in enumerate(options) if candidate.skips)
    reached = np.floor(np.arange(1, blocks + 1) * share / 100 + 1e-9)
    runs = np.diff(reached, prepend=0.0) > 0
    return np.where(runs, option, skip).astype(np.uint8)


def _inputs(bundle: Bundle, data: Dataset | None, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, str]:
    if data is not None:
        drawn = data.subset(MAX_INPUTS, seed)
        return drawn.images, drawn.labels, drawn.name
    samples = bundle.samples()
    if samples is None:
        raise UsageError(f"{bundle.path} carries no images; give some with --data")
    order = np.random.default_rng(seed).permutation(len(samples.images))
    # No labels: they were chosen for different paths, so their top-1 would say nothing about any data.
    return samples.images[order], None, "images carried by the bundle, chosen for different paths"


def _top1(logits: NDArray[np.float32], labels: NDArray[np.int64] | None) -> float | None:
    return None if labels is None else float(np.mean(logits.argmax(1) == labels[: len(logits)]))


def _engines_alone(runtime: Runtime, paths: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean over paths of the sum of the standalone medians of their engines, in ms; and median gate step, in us."""
    unique, counts = np.unique(paths, axis=0, return_counts=True)
    medians: dict[int, float] = {}
    total = 0.0
    for row, count in zip(unique, counts, strict=True):
        for call in runtime.engine_calls(row):
            if id(call) not in medians:
                medians[id(call)] = median_alone(call)
            total += float(count) * medians[id(call)]
    gates = [median_alone(call) for call in runtime.gate_calls()]
    return total / len(paths), 1e3 * float(np.median(gates)) if gates else 0.0


def ratio(cases: Sequence[CaseResult], name: str, base: str) -> float | None:
    """Median latency of a case over that of another; ``None`` where one is missing."""
    by_name = {case.name: case for case in cases}
    if name not in by_name or base not in by_name:
        return None
    return by_name[name].timing.p50 / by_name[base].timing.p50
