"""One measuring run of a bench: opens everything, times it in rounds, and puts the result together."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace
from numpy.typing import NDArray

from dfs_deploy.bench.accuracy import contest, scored
from dfs_deploy.bench.candidates import Candidate, Inputs, engines_alone, gates_alone, has_gate, open_candidates
from dfs_deploy.bench.clock import (
    CLOCK,
    Case,
    Rounds,
    case_result,
    median_alone,
    paired_ratios,
    round_for,
    time_interleaved,
)
from dfs_deploy.bench.devices import RUNTIME_OF
from dfs_deploy.bench.energy import EnergySampler, measure_energy
from dfs_deploy.bench.jetson import read_jetson, read_power_state
from dfs_deploy.bench.machine import Watch, read_state
from dfs_deploy.bench.paths import forced_paths, option_shares, predict_ms, time_paths
from dfs_deploy.bench.result import (
    DYNAMIC,
    RIVAL,
    STATIC,
    BenchResult,
    CaseResult,
    Disturbance,
    JetsonRun,
    Round,
    Setup,
)
from dfs_deploy.bench.sensors import find_sampler
from dfs_deploy.bench.start_up import measure_start_up
from dfs_deploy.bench.verdict import Evidence, unsteady
from dfs_deploy.bundle import Bundle
from dfs_deploy.costs import LatencyTable
from dfs_deploy.options import computation_percentage
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.progress import Progress
from dfs_deploy.runtimes import Runtime
from dfs_deploy.suspicion import suspicions
from dfs_deploy.thresholds import NOISY

_LOG = logging.getLogger(__name__)

_PATH_SHARE = 1 / 3
"""Share of a case's measured time that one path gets."""


def measure(
    setup: Setup,
    bundle: Bundle,
    others: Sequence[Bundle],
    inputs: Inputs,
    *,
    batch: int,
    plan: bool,
    prepared: bool,
    all_budgets: bool,
    forced: bool,
    min_s: float,
    max_s: float,
    min_iterations: int,
    warm_up_s: float,
    steady: bool,
    max_top1_drop: float,
    start_ups: int,
    energy_s: float,
    costs: LatencyTable | None,
    open_runtime: Callable[..., Runtime],
    progress: Progress,
) -> BenchResult:
    """Opens everything, times it, and puts the result together.

    The arguments are those of ``bench``, opened and checked; of the inputs the first
    ``setup.inputs`` are run. ``steady`` says whether a run whose mean ratios are not known well is INVALID, ``costs``
    is the latency table that the times of the dynamic network are predicted by.
    """
    device, threads, count = setup.device, setup.threads, setup.inputs
    on_cpu = RUNTIME_OF[device] == "onnxruntime"
    choices: dict[str, Any] = {"plan": plan, "prepared": prepared, "budget": setup.budget}
    state = read_state()
    before = read_power_state() if device == "jetson" else None
    with ExitStack() as closing:
        runtime = closing.enter_context(open_runtime(bundle, RUNTIME_OF[device], threads=threads, **choices))
        candidates = open_candidates(
            bundle,
            runtime,
            batch=batch,
            threads=threads or 1,
            forced=forced,
            closing=closing,
            others=others,
            all_budgets=all_budgets,
            plan=plan,
            prepared=prepared,
        )
        batches = _batches({candidate.input for candidate in candidates}, inputs.images[:count], batch)
        labels = None if inputs.labels is None else inputs.labels[:count]
        judge = _Judge(candidates, batch, batches, labels, max_top1_drop, steady)
        timed = [Case(candidate.name, _on(candidate, batches[candidate.input])) for candidate in candidates]
        alone = list(_alone(candidates, judge.paths, closing)) if batch == 1 else []
        measured = _timed(
            [*timed, *alone],
            count // batch,
            warm_up_s=warm_up_s,
            min_s=min_s,
            max_s=max_s,
            min_iterations=min_iterations,
            judge=judge,
            progress=progress,
        )
        paths = judge.paths[DYNAMIC]
        predicted = None if costs is None or batch > 1 else predict_ms(costs, runtime, paths)
        progress("timing paths", 0.0)
        timed_paths = (
            time_paths(
                runtime,
                np.concatenate(batches[bundle.input]),
                paths,
                size=measured.size,
                min_s=min_s * _PATH_SHARE,
                min_iterations=min_iterations,
                progress=progress,
            )
            if batch == 1
            else ()
        )
        sampler = find_sampler(device) if energy_s > 0.0 else "not asked for"
        energy = (
            measure_energy(sampler, timed, range(count // batch), batch, window_s=energy_s, progress=progress)
            if isinstance(sampler, EnergySampler)
            else None
        )
        facts = runtime.description
    used = {} if energy is None else {case.name: case.joules_per_image for case in energy.cases}
    found = measured.evidence
    cases = tuple(
        replace(
            case,
            joules_per_image=used.get(case.name),
            predicted_ms=predicted if case.name == DYNAMIC else None,
            prediction_ratio=case.latency_ms.p50 / predicted if predicted and case.name == DYNAMIC else None,
        )
        for case in measured.cases
    )
    caveats = (*judge.suspicions(), *_caveats((bundle, *others) if on_cpu else (), measured.disturbance))
    return BenchResult(
        **asdict(setup),
        state=state,
        disturbance=measured.disturbance,
        runtime=facts,
        clock=CLOCK,
        round=measured.size,
        looks=measured.looks,
        valid=not found.problems,
        problems=found.problems,
        noisy=tuple(case.name for case in cases if case.static and case.latency_ms.cov > NOISY),
        verdict=found.verdict(device, caveats),
        option_share=option_shares(paths, len(bundle.options)),
        energy=energy,
        no_energy=sampler if isinstance(sampler, str) else "",
        jetson=None if before is None else JetsonRun(read_jetson(), before, read_power_state()),
        cases=cases,
        over_static=tuple(found.over_static),
        rival=found.rival,
        paths=timed_paths,
        forced=forced_paths(
            bundle.options,
            cases,
            measured.rounds,
            len(bundle.architecture.decided(bundle.options)),
            len(bundle.architecture.skippable(bundle.options)),
        ),
        start_up=measure_start_up(
            bundle.path,
            [case.name for case in cases if (case.static and not case.rival) or case.name == DYNAMIC],
            start_ups if on_cpu else 0,
            threads=threads or 1,
            progress=progress,
            **choices,
        ),
        contender=found.contender,
        max_top1_drop=max_top1_drop,
    )


class _Judge:
    """Makes figures of times.

    Args:
        candidates: everything that classifies, the dynamic network first.
        batch: images per call.
        batches: inputs of each contract.
        labels: (N,) int64, or ``None``.
        max_top1_drop: share of right answers that the verdict lets a case lose.
        steady: whether a run whose mean ratios are not known well is INVALID, as a baseline's must be.

    Attributes:
        paths: (N, gated blocks) option indices of each candidate that is dispatched.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        batch: int,
        batches: Mapping[InputContract, Sequence[NDArray[np.float32]]],
        labels: NDArray[np.int64] | None,
        max_top1_drop: float,
        steady: bool,
    ) -> None:
        self._bundle, self._candidates, self._batch = candidates[0].bundle, candidates, batch
        self._labels, self._max_top1_drop, self._steady = labels, max_top1_drop, steady
        self._inputs = sum(map(len, batches[self._bundle.input]))
        self.paths = {
            each.name: np.repeat(each.forced[None], self._inputs, 0)
            if each.forced is not None
            else np.concatenate([each.runtime(x).path for x in batches[each.input]])
            for each in candidates
            if each.runtime is not None
        }
        # Forced paths answer another question than what the right class is.
        self._predicted: dict[str, NDArray[np.int64]] = {
            each.name: np.concatenate([each.logits(x) for x in batches[each.input]]).argmax(1)
            for each in candidates
            if each.forced is None
        }
        self._right = {} if labels is None else {name: found == labels for name, found in self._predicted.items()}

    def suspicions(self) -> Iterator[str]:
        """Hints at a mistake in how a network is run, one line each.

        The bundle's own static engines are left out: a backbone that was trained to skip blocks may well know nothing
        with every block run.
        """
        classes, names = self._bundle.architecture.classes, self._bundle.input.class_names
        for name, predicted in self._predicted.items():
            if name == DYNAMIC or RIVAL in name:
                yield from (f"{name}: {line}" for line in suspicions(self._labels, predicted, classes, names))

    def __call__(self, rounds: Mapping[str, Rounds], size: Round) -> tuple[tuple[CaseResult, ...], Evidence]:
        """Judges the times so far.

        Args:
            rounds: times of each case.
            size: calls of a case before the next one takes over.

        Returns:
            The cases, with their accuracy on all images, and what a verdict rests on.
        """
        cases = self._cases(rounds)
        judged = contest(cases, self._right, self._max_top1_drop)
        ratios = [
            paired_ratios(rounds[judged.contender], rounds[case.name], case.name) for case in cases if case.static
        ]
        shown = scored(cases, self._right)
        doubt = unsteady(shown) if self._steady else None
        return shown, Evidence(
            judged.cases,
            [ratio for ratio in ratios if ratio is not None],
            size,
            self._inputs,
            self._max_top1_drop,
            () if doubt is None else (doubt,),
            contender=judged.contender,
            chosen_from=judged.chosen_from,
            sufficed=judged.sufficed,
            best=judged.best,
            gated=has_gate(self._bundle),
        )

    def _cases(self, rounds: Mapping[str, Rounds]) -> list[CaseResult]:
        """Figures of every case but its accuracy."""
        base = next((each.name for each in self._candidates if each.name.startswith(STATIC)), None)
        results = []
        for candidate in self._candidates:
            name, architecture, options = candidate.name, candidate.bundle.architecture, candidate.bundle.options
            taken = self.paths.get(name, None if candidate.forced is None else candidate.forced[None])
            alone = rounds.get(_engines_of(name))
            weights = architecture.weights(options)
            case = case_result(
                name,
                self._batch,
                rounds[name],
                ratio=None if base is None else paired_ratios(rounds[name], rounds[base], base),
                engine_ms=None if alone is None else float(np.median(alone)) / 1e6,
                computation_percentage=None
                if taken is None
                else float(computation_percentage(taken, options.costs, weights).mean(dtype=np.float64)),
            )
            if alone is not None:
                gates = rounds.get(_gates_of(name))
                gates_ms = 0.0 if gates is None else float(np.median(gates)) / 1e6
                between = paired_ratios(alone, rounds[name], name)
                case = replace(
                    case,
                    gate_us=1e3 * gates_ms / max(1, len(architecture.decided(options))),
                    gate_share=gates_ms / case.latency_ms.p50,
                    dispatch_efficiency_interval=None if between is None else between.p50,
                )
            results.append(case)
        return results


@dataclass(frozen=True)
class _Times:
    """All times, what a verdict can rest on, and how often that was looked at."""

    cases: tuple[CaseResult, ...]
    evidence: Evidence
    rounds: Mapping[str, Rounds]
    size: Round
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
    judge: _Judge,
    progress: Progress,
) -> _Times:
    """Times cases until what is judged is known, or the limit is reached: each extension doubles the run."""
    # Five calls are enough to choose how long a round is.
    size = round_for(max(median_alone(functools.partial(case.call, 0), repeats=5) for case in timed))
    watch = Watch()
    order = np.arange(inputs)
    rounds: dict[str, Rounds] = {}
    passed, ahead, least, looks = 0.0, min_s, min_iterations, 0
    while True:
        times = time_interleaved(
            timed,
            [int(index) for index in order],
            warm_up_s=0.0 if looks else warm_up_s,
            min_s=ahead * len(timed),
            min_iterations=least,
            burst=size.measured,
            unmeasured=size.unmeasured,
            progress=progress,
            stage="timing for longer, to be sure" if looks else "timing",
        )
        for name, taken in times.items():
            new = np.asarray(taken, np.int64).reshape(-1, size.measured)
            rounds[name] = np.concatenate([rounds[name], new]) if looks else new
        order = np.roll(order, -len(times[timed[0].name]))
        looks, passed = looks + 1, passed + ahead
        cases, found = judge(rounds, size)
        ahead = min(passed, max_s - passed)
        if not found.wants_more(max_s / passed if passed else 1.0) or ahead <= 0.0:
            return _Times(cases, found, rounds, size, looks, watch.stop())
        _LOG.info("timing for longer: %s", found.problems[0].what if found.problems else "the 95th percentile")
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


def _on(candidate: Candidate, batches: Sequence[NDArray[np.float32]]) -> Callable[[int], object]:
    classify = candidate.logits
    return lambda index: classify(batches[index])


def _alone(
    candidates: Sequence[Candidate], paths: Mapping[str, NDArray[np.uint8]], closing: ExitStack
) -> Iterator[Case]:
    """Engines without dispatch, and gates without engines: timed in the same rounds as what they are part of."""
    stepping = set()
    for candidate in candidates:
        if candidate.runtime is None:
            continue
        engines = engines_alone(candidate.runtime, paths[candidate.name])
        closing.callback(engines.forget)
        yield Case(_engines_of(candidate.name), engines)
        gates = gates_alone(candidate.runtime, len(paths[candidate.name]))
        if gates is not None and _gates_of(candidate.name) not in stepping:
            stepping.add(_gates_of(candidate.name))  # one gate steps alike at every budget and on every path
            closing.callback(gates.forget)
            yield Case(_gates_of(candidate.name), gates)


def _engines_of(name: str) -> str:
    return f"{name} engines"


def _gates_of(name: str) -> str:
    """Name of the timed case that makes every gate step of an image of a case's bundle, and nothing else."""
    _, mark, bundle = name.partition(RIVAL)
    return f"gates{mark}{bundle}"


def _caveats(bundles: Sequence[Bundle], disturbance: Disturbance) -> Iterator[str]:
    """Weaknesses of any verdict, one line each."""
    for bundle in bundles:
        if bundle.cpu_mismatch is not None:
            yield f"{bundle.name} was {bundle.cpu_mismatch}"
    if disturbance.throttled_periods:
        yield (
            f"the container's CPU quota stopped this process in {disturbance.throttled_periods} periods while cases"
            " were timed, which lengthens calls at random; raise the quota, or lower --threads"
        )
