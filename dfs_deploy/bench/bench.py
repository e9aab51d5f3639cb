"""What a user runs to decide whether to ship: the dynamic network against static ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.accuracy import standing
from dfs_deploy.bench.alone import EnginesAlone, EngineTimes, GatesAlone
from dfs_deploy.bench.candidates import DYNAMIC, RIVAL, Candidate, check_rivals, open_candidates
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import Case, Turn, median_alone, summarize, time_interleaved, turn_for
from dfs_deploy.bench.devices import RUNTIME_OF
from dfs_deploy.bench.energy import find_sampler, why_no_sampler
from dfs_deploy.bench.energy_cases import EnergyReport, measure_energy
from dfs_deploy.bench.forced import forced_paths
from dfs_deploy.bench.inputs import draw_inputs
from dfs_deploy.bench.intervals import Ratios, paired_ratios, share_difference
from dfs_deploy.bench.jetson import JetsonRun, read_jetson, read_power_state
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.bench.paths import option_shares, time_paths
from dfs_deploy.bench.results import BenchResult, BundleFacts
from dfs_deploy.bench.start_up import measure_start_up
from dfs_deploy.bench.state import Disturbance, Watch, read_state
from dfs_deploy.bench.validity import Problem, find_problems, rival_ratios, unsteady, wants_more
from dfs_deploy.bench.verdict import decide
from dfs_deploy.bundle import Bundle
from dfs_deploy.data import Dataset, ImageFolder
from dfs_deploy.errors import UsageError
from dfs_deploy.options import computation_percentage
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.runtimes import Runtime
from dfs_deploy.suspicion import suspicions
from dfs_deploy.system.cpu import made_for_another_cpu
from dfs_deploy.thresholds import VERDICT_MAX_TOP1_DROP

Report = Callable[[str, float], None]

EXTENSION = 4
"""How many times as long as asked for a run may become, to know what its verdict reads."""

_PATH_SHARE = 1 / 3
"""Of the measured time of a case, what one path gets."""

_GATES = "gates"
"""Name of the timed case that makes every gate step of an image and nothing else."""


def run_bench(
    bundle: Bundle,
    data: Dataset | ImageFolder | None = None,
    *,
    against: Sequence[Bundle] = (),
    device: str = "cpu",
    batch: int = 1,
    threads: int | None = None,
    plan: bool = True,
    prepared: bool = True,
    budget: float | None = None,
    budgets: Sequence[float] = (),
    forced: bool = False,
    seed: int = 0,
    min_s: float = 3.0,
    max_s: float | None = None,
    min_iterations: int = 200,
    warm_up_s: float = 0.2,
    steady: bool = False,
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP,
    start_ups: int = 0,
    energy_s: float = 0.0,
    open_runtime: Callable[..., Runtime] = Runtime,
    progress: Report | None = None,
) -> BenchResult:
    """Times a bundle and static networks on the same inputs, turn by turn.

    The run is extended, to twice and then four times its length, while what the verdict reads is not known.

    Args:
        bundle: bundle with engines for the device's runtime.
        data: data set that inputs are drawn from, in a seeded order; ``None`` for the shipped digits if the bundle was
            made for them, for the images that the bundle carries otherwise.
        against: bundles of networks that were trained to be static, which the verdict takes in.
        device: device that is reported; check it with :func:`~dfs_deploy.bench.devices.check_device` first.
        batch: images per call.
        threads: threads that one engine may use; ``None`` for one, and on a device whose runtime has none.
        plan: whether to use the plan measured on this machine, if there is one.
        prepared: whether to run engines prepared for this machine.
        budget: computation that the dynamic network is to hold, 0 to 1; ``None`` for the gate as trained.
        budgets: computation that it is to hold in further cases, each timed in the same turns.
        forced: whether to time forced paths and their traces as well, with none to all of the gated blocks run.
        seed: seed of the order.
        min_s: measured seconds per case, on average.
        max_s: the same, at most, if the run has to be extended; ``None`` for four times ``min_s``.
        min_iterations: calls of a case, at least.
        warm_up_s: seconds before measuring.
        steady: whether a run whose mean ratios are not known well is INVALID, as a baseline's must be.
        max_top1_drop: share of right answers that the verdict lets a case lose against the most accurate one.
        start_ups: processes that are started per case, to see what a start takes; 0 for none.
        energy_s: seconds per case to measure energy in, after the timing; 0 for not at all.
        open_runtime: function that opens the dynamic network, called as :class:`~dfs_deploy.runtimes.Runtime` is.
        progress: called with what is being done and how far it is.

    Raises:
        UsageError: no inputs, or fewer than one batch; paths cannot be forced, or none of them skips; a network to
            compare with does not fit; threads on a device whose runtime has none; a budget that was not calibrated.
    """
    report: Report = progress or (lambda what, share: None)
    on_cpu = RUNTIME_OF[device] == "onnxruntime"
    if threads is not None and not on_cpu:
        raise UsageError(f"{threads} threads on {device}, whose runtime has none; leave threads out")
    threads = (threads or 1) if on_cpu else None
    check_rivals(bundle, against)
    inputs = draw_inputs(bundle, data, seed)
    count = len(inputs.images) // batch * batch
    if not count:
        raise UsageError(f"{len(inputs.images)} images, expected at least one batch of {batch}; give more with --data")
    machine, state = describe_machine(), read_state()
    before = read_power_state() if device == "jetson" else None
    with ExitStack() as closing:
        runtime = closing.enter_context(
            open_runtime(bundle, RUNTIME_OF[device], threads=threads, plan=plan, prepared=prepared, budget=budget)
        )
        candidates = open_candidates(
            bundle,
            runtime,
            batch=batch,
            threads=threads or 1,
            forced=forced,
            closing=closing,
            against=against,
            budgets=budgets,
        )
        batches = _batches({candidate.input for candidate in candidates}, inputs.images[:count], batch)
        paths = {
            candidate.name: _paths(candidate, batches[candidate.input])
            for candidate in candidates
            if candidate.runtime is not None
        }
        predictions = _predictions(candidates, batches)
        labels = None if inputs.labels is None else inputs.labels[:count]
        right = {} if labels is None else {name: found == labels for name, found in predictions.items()}
        doubts = tuple(_suspicions(predictions, labels, bundle))
        timed = [Case(candidate.name, _on(candidate, batches[candidate.input])) for candidate in candidates]
        alone = list(_alone(candidates, paths, runtime, closing)) if batch == 1 else []
        measured = _timed(
            [*timed, *alone],
            count // batch,
            warm_up_s=warm_up_s,
            min_s=min_s,
            max_s=EXTENSION * min_s if max_s is None else max_s,
            min_iterations=min_iterations,
            judge=lambda turns, turn, growth: _judged(
                candidates, turns, turn, growth, batch, paths, right, bundle, count, max_top1_drop, steady
            ),
            report=report,
        )
        found, turns, turn = measured.found, measured.turns, measured.turn
        normalised = np.concatenate(batches[bundle.input])
        report("timing paths", 0.0)
        timed_paths = (
            time_paths(
                runtime,
                normalised,
                paths[DYNAMIC],
                EngineTimes(runtime),
                turn=turn,
                min_s=min_s * _PATH_SHARE,
                min_iterations=min_iterations,
                progress=functools.partial(report, "timing paths"),
            )
            if batch == 1
            else ()
        )
        energy = _energy(device, timed, count // batch, batch, energy_s, functools.partial(report, "measuring energy"))
        cases = _with_energy(found.cases, energy)
        facts = runtime.description
    return BenchResult(
        bundle=_facts(bundle),
        against=tuple(_facts(rival) for rival in against),
        device=device,
        threads=threads,
        seed=seed,
        budget=budget,
        data=inputs.name,
        inputs=count,
        notes=inputs.notes,
        machine=machine,
        state=state,
        disturbance=measured.disturbance,
        turn=turn,
        looks=measured.looks,
        runtime=facts,
        cases=cases,
        over_static=found.over_static,
        option_share=option_shares(paths[DYNAMIC], len(bundle.options)),
        problems=found.problems,
        rival=rival_ratios(cases, found.over_static, max_top1_drop),
        energy=energy,
        no_energy="not asked for" if energy_s <= 0.0 else why_no_sampler(device),
        jetson=None if before is None else JetsonRun(read_jetson(), before, read_power_state()),
        verdict=decide(
            cases,
            found.over_static,
            found.problems,
            max_top1_drop,
            device,
            (*doubts, *_caveats((bundle, *against) if on_cpu else (), measured.disturbance)),
        ),
        paths=timed_paths,
        forced=forced_paths(bundle.options, cases, turns, bundle.architecture.gated_blocks),
        start_up=measure_start_up(
            bundle.path,
            [case.name for case in cases if (case.static and not case.rival) or case.name == DYNAMIC],
            start_ups if on_cpu else 0,
            threads=threads or 1,
            plan=plan,
            prepared=prepared,
            budget=budget,
            progress=functools.partial(report, "starting processes"),
        ),
    )


Turns = Mapping[str, NDArray[np.int64]]
"""By case, (turns, calls per turn) nanoseconds."""


@dataclass(frozen=True)
class _Judged:
    """What the times so far say; ``more`` if further ones may say what is not known yet."""

    cases: tuple[CaseResult, ...]
    over_static: tuple[Ratios, ...]
    problems: tuple[Problem, ...]
    more: bool


@dataclass(frozen=True)
class _Measured:
    """All times, what they say, and how often that was looked at."""

    found: _Judged
    turns: Turns
    turn: Turn
    looks: int
    disturbance: Disturbance


def _timed(
    timed: Sequence[Case],
    inputs: int,
    *,
    warm_up_s: float,
    min_s: float,
    max_s: float,
    min_iterations: int,
    judge: Callable[[Turns, Turn, float], _Judged],
    report: Report,
) -> _Measured:
    """Times cases until what is judged is known, or the limit is reached: each extension doubles the run."""
    turn = turn_for(max(_first_look(case) for case in timed))
    watch = Watch()
    order = np.arange(inputs)
    turns: dict[str, NDArray[np.int64]] = {}
    passed, ahead, least, looks = 0.0, min_s, min_iterations, 0
    while True:
        times = time_interleaved(
            timed,
            [int(index) for index in order],
            warm_up_s=0.0 if looks else warm_up_s,
            min_s=ahead * len(timed),
            min_iterations=least,
            burst=turn.measured,
            unmeasured=turn.unmeasured,
            progress=functools.partial(report, "timing for longer, to be sure" if looks else "timing"),
        )
        for name, taken in times.items():
            new = np.asarray(taken, np.int64).reshape(-1, turn.measured)
            turns[name] = np.concatenate([turns[name], new]) if looks else new
        order = np.roll(order, -len(times[timed[0].name]))
        looks, passed = looks + 1, passed + ahead
        found = judge(turns, turn, max_s / passed if passed else 1.0)
        ahead = min(passed, max_s - passed)
        if not found.more or ahead <= 0.0:
            return _Measured(found, turns, turn, looks, watch.stop())
        least = 1


def _batches(
    contracts: set[InputContract], images: NDArray[np.uint8], batch: int
) -> dict[InputContract, list[NDArray[np.float32]]]:
    """The images as each network takes them, cut into batches."""
    normalised = {contract: contract.normalize(images) for contract in contracts}
    return {
        contract: [each[start : start + batch] for start in range(0, len(each), batch)]
        for contract, each in normalised.items()
    }


def _paths(candidate: Candidate, batches: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """(N, gated blocks) option indices that a dispatched candidate runs."""
    if candidate.forced is not None:
        return np.repeat(candidate.forced[None], sum(map(len, batches)), 0)
    assert candidate.runtime is not None  # noqa: S101 (asked of dispatched candidates alone)
    return np.concatenate([candidate.runtime(x).path for x in batches])


def _predictions(
    candidates: Sequence[Candidate], batches: Mapping[InputContract, Sequence[NDArray[np.float32]]]
) -> dict[str, NDArray[np.int64]]:
    """(N,) predicted class of each image, by case; none of forced paths, which answer another question."""
    return {
        candidate.name: np.concatenate([candidate.logits(x) for x in batches[candidate.input]]).argmax(1)
        for candidate in candidates
        if candidate.forced is None
    }


def _suspicions(
    predictions: Mapping[str, NDArray[np.int64]], labels: NDArray[np.int64] | None, bundle: Bundle
) -> Iterator[str]:
    """What hints at a mistake in how a network is run, a line each.

    The bundle's own static engines are left out: a backbone that was trained to skip blocks may well know nothing with
    every block run.
    """
    classes, names = bundle.architecture.classes, bundle.input.class_names
    for name, predicted in predictions.items():
        if name == DYNAMIC or RIVAL in name:
            yield from (f"{name}: {line}" for line in suspicions(labels, predicted, classes, names))


def _alone(
    candidates: Sequence[Candidate], paths: Mapping[str, NDArray[np.uint8]], runtime: Runtime, closing: ExitStack
) -> Iterator[Case]:
    """Engines without dispatch, and the gate without engines: timed in the same turns as what is compared with them."""
    for candidate in candidates:
        if candidate.runtime is not None:
            engines = EnginesAlone(candidate.runtime, paths[candidate.name])
            closing.callback(engines.forget)
            yield Case(_engines_of(candidate.name), engines)
    gates = GatesAlone(runtime)
    closing.callback(gates.forget)
    if gates:
        yield Case(_GATES, gates)


def _engines_of(name: str) -> str:
    return f"{name} engines"


def _caveats(bundles: Sequence[Bundle], disturbance: Disturbance) -> Iterator[str]:
    """What weakens any verdict, a line each."""
    for bundle in bundles:
        note = made_for_another_cpu(bundle.manifest.int8_weight_bits)
        if note is not None:
            yield f"{bundle.name} was {note}"
    if disturbance.throttled_periods:
        yield (
            f"the container's CPU quota stopped this process in {disturbance.throttled_periods} periods while cases"
            " were timed, which lengthens calls at random; raise the quota, or lower --threads"
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


def _judged(
    candidates: Sequence[Candidate],
    turns: Turns,
    turn: Turn,
    growth: float,
    batch: int,
    paths: Mapping[str, NDArray[np.uint8]],
    right: Mapping[str, NDArray[np.bool_]],
    bundle: Bundle,
    inputs: int,
    max_top1_drop: float,
    steady: bool,
) -> _Judged:
    """Makes the figures of every case, and looks for what is not known yet."""
    cases = _results(candidates, turns, batch, paths, right, bundle)
    over_static = [paired_ratios(turns[DYNAMIC], turns[case.name], case.name) for case in cases if case.static]
    known = tuple(ratios for ratios in over_static if ratios is not None)
    problems = find_problems(cases, known, turn, inputs, max_top1_drop)
    swaying = unsteady(cases) if steady else None
    problems += () if swaying is None else (swaying,)
    return _Judged(cases, known, problems, wants_more(problems, cases, known, turn, growth, max_top1_drop))


def _results(
    candidates: Sequence[Candidate],
    turns: Turns,
    batch: int,
    paths: Mapping[str, NDArray[np.uint8]],
    right: Mapping[str, NDArray[np.bool_]],
    bundle: Bundle,
) -> tuple[CaseResult, ...]:
    """Makes the figures of every case; those of static cases and of the gate's own paths come with accuracy."""
    base = next((candidate.name for candidate in candidates if candidate.static), None)
    gates_ms = float(np.median(turns[_GATES])) / 1e6 if _GATES in turns else 0.0
    results = []
    for candidate in candidates:
        name, timing = candidate.name, summarize(turns[candidate.name].ravel())
        alone, answers = turns.get(_engines_of(name)), right.get(name)
        between = None if alone is None else paired_ratios(alone, turns[name], name)
        taken = paths.get(name, None if candidate.forced is None else candidate.forced[None])
        results.append(
            CaseResult(
                name=name,
                batch=batch,
                timing=timing,
                engine_ms=None if alone is None else float(np.median(alone)) / 1e6,
                gate_us=None if alone is None else 1e3 * gates_ms / max(1, bundle.architecture.gated_blocks),
                gate_share=None if alone is None else gates_ms / timing.p50,
                efficiency=None if between is None else between.p50,
                top1=None if answers is None else float(np.mean(answers)),
                top1_change=None if answers is None or base is None else share_difference(answers, right[base]),
                computation_percentage=None
                if taken is None
                else float(computation_percentage(taken, bundle.options.costs).mean(dtype=np.float64)),
                ratios=None if base is None else paired_ratios(turns[name], turns[base], base),
            )
        )
    found = standing(results)
    if found is None:
        return tuple(results)
    best = right[found.best.name]
    return tuple(
        case if case.top1 is None else replace(case, top1_below_best=share_difference(right[case.name], best))
        for case in results
    )


def _facts(bundle: Bundle) -> BundleFacts:
    return BundleFacts(
        name=bundle.name,
        digest=bundle.digest,
        checkpoint=bundle.manifest.source.sha256,
        architecture=bundle.architecture.name,
        options=bundle.options.names,
    )
