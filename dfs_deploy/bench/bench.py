"""What a user runs to decide whether to ship: the dynamic network against static engines of the same backbone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.alone import EngineTimes
from dfs_deploy.bench.candidates import DYNAMIC, Candidate, open_candidates
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import Case, median_alone, summarize, time_interleaved, turn_for
from dfs_deploy.bench.devices import RUNTIME_OF
from dfs_deploy.bench.energy import find_sampler, why_no_sampler
from dfs_deploy.bench.energy_cases import EnergyReport, measure_energy
from dfs_deploy.bench.forced import forced_paths
from dfs_deploy.bench.inputs import Inputs, draw_inputs
from dfs_deploy.bench.intervals import paired_ratios, share_difference
from dfs_deploy.bench.jetson import JetsonRun, read_jetson, read_power_state
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.bench.paths import option_shares, time_paths
from dfs_deploy.bench.results import BenchResult, BundleFacts
from dfs_deploy.bench.start_up import measure_start_up
from dfs_deploy.bench.state import Watch, read_state
from dfs_deploy.bench.validity import find_problems
from dfs_deploy.bench.verdict import MAX_TOP1_DROP, decide
from dfs_deploy.bundle import Bundle
from dfs_deploy.datasets import Dataset, ImageFolder
from dfs_deploy.errors import UsageError
from dfs_deploy.options import computation_percentage
from dfs_deploy.runtimes import Runtime

Report = Callable[[str, float], None]

_PATH_SHARE = 1 / 3
"""Of the measured time of a case, what one path gets."""


def run_bench(
    bundle: Bundle,
    data: Dataset | ImageFolder | None = None,
    *,
    device: str = "cpu",
    batch: int = 1,
    threads: int = 1,
    plan: bool = True,
    prepared: bool = True,
    budget: float | None = None,
    forced: bool = False,
    seed: int = 0,
    min_s: float = 3.0,
    min_iterations: int = 200,
    warm_up_s: float = 0.2,
    max_top1_drop: float = MAX_TOP1_DROP,
    start_ups: int = 0,
    energy_s: float = 0.0,
    open_runtime: Callable[..., Runtime] = Runtime,
    progress: Report | None = None,
) -> BenchResult:
    """Times a bundle and its static baselines on the same inputs, turn by turn.

    Args:
        bundle: with engines for ONNX Runtime.
        data: where inputs are drawn from, in a seeded order; ``None`` for the shipped digits where the bundle was made
            for them, for the images that the bundle carries elsewhere.
        device: what is reported; check it with :func:`~dfs_deploy.bench.devices.check_device` first.
        batch: images a call.
        threads: that one engine may use.
        plan: whether to use the plan measured on this machine, if there is one.
        prepared: whether to run engines prepared for this machine.
        budget: that the dynamic network is to hold, 0 to 1; ``None`` for the gate as trained.
        forced: whether to time forced paths and their traces as well, with none to all of the gated blocks run.
        seed: of the order.
        min_s: measured seconds a case, on average.
        min_iterations: calls a case, at least.
        warm_up_s: seconds before measuring.
        max_top1_drop: share of right answers that the verdict lets a case lose against the most precise static engine.
        start_ups: processes that are started a case, to see what a start takes; 0 for none.
        energy_s: seconds a case to measure energy in, after the timing; 0 for not at all.
        open_runtime: what opens the dynamic network, called as :class:`~dfs_deploy.runtimes.Runtime` is.
        progress: called with what is being done and how far it is.

    Raises:
        UsageError: no inputs, or fewer than one batch; or paths cannot be forced, or none of them skips.
        MissingExtraError: ``forced``, and onnx is not installed.
    """
    report: Report = progress or (lambda what, share: None)
    inputs = draw_inputs(bundle, data, seed)
    if len(inputs.images) < batch:
        raise UsageError(f"{len(inputs.images)} images, expected at least one batch of {batch}; give more with --data")
    images = bundle.input.normalize(inputs.images[: len(inputs.images) // batch * batch])
    batches = [images[start : start + batch] for start in range(0, len(images), batch)]
    machine, state = describe_machine(), read_state()
    before = read_power_state() if device == "jetson" else None
    with ExitStack() as closing:
        runtime = closing.enter_context(
            open_runtime(
                bundle,
                RUNTIME_OF[device],
                threads=threads if RUNTIME_OF[device] == "onnxruntime" else None,
                plan=plan,
                prepared=prepared,
                budget=budget,
            )
        )
        paths = np.concatenate([runtime(x).path for x in batches])
        candidates = open_candidates(bundle, runtime, batch=batch, threads=threads, forced=forced, closing=closing)
        timed = [Case(candidate.name, _on(candidate, batches)) for candidate in candidates]
        turn = turn_for(max(_first_look(case) for case in timed))
        watch = Watch()
        times = time_interleaved(
            timed,
            range(len(batches)),
            warm_up_s=warm_up_s,
            min_s=min_s * len(candidates),
            min_iterations=min_iterations,
            burst=turn.measured,
            unmeasured=turn.unmeasured,
            progress=functools.partial(report, "timing"),
        )
        disturbance = watch.stop()
        turns = {name: np.asarray(taken, np.int64).reshape(-1, turn.measured) for name, taken in times.items()}
        report("timing engines alone", 0.0)
        engines = EngineTimes(runtime) if batch == 1 else None
        cases = _results(candidates, turns, batches, paths, inputs, engines, bundle)
        timed_paths = (
            ()
            if engines is None
            else time_paths(
                runtime,
                images,
                paths,
                engines,
                turn=turn,
                min_s=min_s * _PATH_SHARE,
                min_iterations=min_iterations,
                progress=functools.partial(report, "timing paths"),
            )
        )
        energy = _energy(device, timed, len(batches), batch, energy_s, functools.partial(report, "measuring energy"))
        cases = _with_energy(cases, energy)
        facts = runtime.description
    over_static = [
        ratios
        for case in cases
        if case.static and (ratios := paired_ratios(turns[DYNAMIC], turns[case.name], case.name)) is not None
    ]
    problems = find_problems(cases, turn, len(images))
    return BenchResult(
        bundle=_facts(bundle),
        device=device,
        threads=threads,
        seed=seed,
        budget=budget,
        data=inputs.name,
        inputs=len(images),
        machine=machine,
        state=state,
        disturbance=disturbance,
        turn=turn,
        runtime=facts,
        cases=cases,
        over_static=tuple(over_static),
        option_share=option_shares(paths, len(bundle.options)),
        problems=problems,
        energy=energy,
        no_energy="not asked for" if energy_s <= 0.0 else why_no_sampler(device),
        jetson=None if before is None else JetsonRun(read_jetson(), before, read_power_state()),
        verdict=decide(cases, over_static, problems, max_top1_drop, device),
        paths=timed_paths,
        forced=forced_paths(bundle.options, cases, turns, bundle.architecture.gated_blocks),
        start_up=measure_start_up(
            bundle.path,
            [case.name for case in cases if case.static or case.name == DYNAMIC],
            start_ups if RUNTIME_OF[device] == "onnxruntime" else 0,
            threads=threads,
            plan=plan,
            prepared=prepared,
            budget=budget,
            progress=functools.partial(report, "starting processes"),
        ),
    )


def _energy(
    device: str, cases: Sequence[Case], inputs: int, batch: int, seconds: float, progress: Callable[[float], None]
) -> EnergyReport | None:
    sampler = find_sampler(device) if seconds > 0.0 else None
    if sampler is None:
        return None
    return measure_energy(sampler, cases, range(inputs), batch, window_s=seconds, progress=progress)


def _with_energy(cases: tuple[CaseResult, ...], energy: EnergyReport | None) -> tuple[CaseResult, ...]:
    used = {} if energy is None else {case.name: case.joules_per_image for case in energy.cases}
    return tuple(replace(case, joules_per_image=used.get(case.name)) for case in cases)


def _on(candidate: Candidate, batches: Sequence[NDArray[np.float32]]) -> Callable[[int], object]:
    classify = candidate.logits
    return lambda index: classify(batches[index])


def _first_look(case: Case) -> float:
    """Roughly what a call takes, in milliseconds: enough to choose how long a turn is."""
    return median_alone(functools.partial(case.call, 0), repeats=5)


def _results(
    candidates: Sequence[Candidate],
    turns: Mapping[str, NDArray[np.int64]],
    batches: Sequence[NDArray[np.float32]],
    paths: NDArray[np.uint8],
    inputs: Inputs,
    engines: EngineTimes | None,
    bundle: Bundle,
) -> tuple[CaseResult, ...]:
    """Makes the figures of every case; those of static cases and of the gate's own paths come with accuracy."""
    right = {
        candidate.name: np.concatenate([candidate.logits(x) for x in batches]).argmax(1) == inputs.labels[: len(paths)]
        for candidate in candidates
        if inputs.labels is not None and candidate.forced is None
    }
    base = next((candidate.name for candidate in candidates if candidate.static), None)
    results = []
    for candidate in candidates:
        name, timing = candidate.name, summarize(turns[candidate.name].ravel())
        own = paths if candidate.forced is None else candidate.forced[None]
        alone = engines if candidate.dispatched else None
        answers = right.get(name)
        results.append(
            CaseResult(
                name=name,
                batch=len(batches[0]),
                timing=timing,
                engine_ms=None if alone is None else alone.mean_ms(own),
                gate_us=None if alone is None else alone.gate_us,
                gate_share=None if alone is None else alone.gates_ms / timing.p50,
                top1=None if answers is None else float(np.mean(answers)),
                top1_change=None if answers is None or base is None else share_difference(answers, right[base]),
                computation_percentage=None
                if candidate.static
                else float(computation_percentage(own, bundle.options.costs).mean(dtype=np.float64)),
                ratios=None if base is None else paired_ratios(turns[name], turns[base], base),
            )
        )
    return tuple(results)


def _facts(bundle: Bundle) -> BundleFacts:
    return BundleFacts(
        name=bundle.name,
        digest=bundle.digest,
        checkpoint=bundle.manifest.source.sha256,
        architecture=bundle.architecture.name,
        options=bundle.options.names,
    )
