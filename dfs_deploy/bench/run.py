"""The verb ``bench``: is the dynamic network worth it here, or is a static network the better choice?"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace
from numpy.typing import NDArray

from dfs_deploy.bench.baseline import check_conditions, compare_with_baseline, load_baseline
from dfs_deploy.bench.baseline import save_baseline as write_baseline
from dfs_deploy.bench.candidates import (
    Candidate,
    Inputs,
    check_rivals,
    draw_inputs,
    engines_alone,
    gates_alone,
    open_candidates,
)
from dfs_deploy.bench.clock import (
    CLOCK,
    Case,
    Rounds,
    case_result,
    median_alone,
    paired_ratios,
    round_for,
    share_difference,
    time_interleaved,
)
from dfs_deploy.bench.costs import measure_costs
from dfs_deploy.bench.devices import DEVICES, RUNTIME_OF, check_device
from dfs_deploy.bench.energy import EnergySampler, measure_energy
from dfs_deploy.bench.jetson import read_jetson, read_power_state
from dfs_deploy.bench.machine import Watch, describe_machine, read_state
from dfs_deploy.bench.paths import forced_paths, option_shares, time_paths
from dfs_deploy.bench.result import (
    DYNAMIC,
    RIVAL,
    SCHEMA_VERSION,
    STATIC,
    BenchedBundle,
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
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.costs import save_costs as write_costs
from dfs_deploy.data import Dataset, ImageFolder, open_dataset
from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.options import computation_percentage
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.plan import measure_plan, plan_file, plan_key
from dfs_deploy.runtimes.onnxruntime.plan import save_plan as write_plan
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, whole_prepared
from dfs_deploy.suspicion import suspicions
from dfs_deploy.system.cpu import made_for_another_cpu
from dfs_deploy.thresholds import NOISE_BAND, NOISY, VERDICT_MAX_TOP1_DROP

_log = logging.getLogger(__name__)

EXTENSION = 4
"""How many times as long as asked for a run may become, to know what its verdict reads."""

_PATH_SHARE = 1 / 3
"""Share of a case's measured time that one path gets."""

_GATES = "gates"
"""Name of the timed case that makes every gate step of an image and nothing else."""


def bench(
    bundle: Bundle | str | Path,
    data: Dataset | ImageFolder | str | Path | None = None,
    *,
    device: str = "cpu",
    against: Sequence[Bundle | str | Path] = (),
    batch: int = 1,
    threads: int | None = None,
    plan: bool = True,
    prepared: bool = True,
    budget: float | None = None,
    all_budgets: bool = False,
    forced: bool = False,
    seed: int = 0,
    min_seconds: float = 3.0,
    max_seconds: float | None = None,
    min_iterations: int = 200,
    warm_up_seconds: float = 0.2,
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP,
    start_ups: int = 3,
    energy_seconds: float = 3.0,
    compare: BenchResult | str | Path | None = None,
    noise_band: float = NOISE_BAND,
    save_baseline: str | Path | None = None,
    save_plan: bool = False,
    save_costs: str | Path | None = None,
    open_runtime: Callable[..., Runtime] = Runtime,
    progress: Progress = silent,
) -> BenchResult:
    """Times a bundle and static networks on the same inputs, round by round, and says what to ship.

    The run is extended, to twice and then four times its length, while what the verdict reads is not known. If it is
    INVALID (``valid`` of the result), nothing is kept: neither baseline nor engine choice nor latency table.

    Args:
        bundle: bundle with engines for the device's runtime.
        data: labelled images that inputs are drawn from, in a seeded order; ``None`` for the shipped digits if the
            bundle was made for them, and else for the images that the bundle carries.
        device: ``cpu``, ``cuda`` or ``jetson``.
        against: bundles of networks that were trained to be static, which the verdict takes in.
        batch: images per call.
        threads: threads that one engine may use; ``None`` for one, and on a device whose runtime has none.
        plan: whether to use the engine choice measured on this machine, if there is one.
        prepared: whether to run engines prepared for this machine.
        budget: computation that the dynamic network is to hold, 0 to 1; ``None`` for the gate as trained.
        all_budgets: whether to time the network at every budget that was calibrated, too, in the same rounds.
        forced: whether to time forced paths and their traces as well, with none to all of the gated blocks run.
        seed: seed of the order of inputs.
        min_seconds: measured seconds per case, on average.
        max_seconds: the same, at most, if the run has to be extended; ``None`` for four times ``min_seconds``.
        min_iterations: calls of a case, at least.
        warm_up_seconds: seconds before measuring.
        max_top1_drop: share of right answers that the verdict lets a case lose against the most accurate one.
        start_ups: processes that are started per case, to time a start and see its memory; 0 for none.
        energy_seconds: seconds per case to measure energy in, after the timing; 0 for not at all.
        compare: earlier bench, or its file, to compare this one with; see ``comparison`` of the result.
        noise_band: share by which a ratio may rise in that comparison.
        save_baseline: file to keep this run in, to compare later ones with.
        save_plan: whether to measure which engines are fastest here first, and to keep that choice.
        save_costs: file for a table of what each option costs at each block here, for training.
        open_runtime: function that opens the dynamic network, called as :class:`~dfs_deploy.runtimes.Runtime` is.
        progress: progress of the run.

    Raises:
        UsageError: no inputs, or fewer than one batch; paths cannot be forced, or none of them skips; a network to
            compare with does not fit; threads on a device whose runtime has none; a budget that was not calibrated.
        EnvironmentLacksError: this machine is not the device.
        ArtefactError: the earlier bench measured something else.
        CheckFailedError: times are so unsteady that the latency table would say nothing.
    """
    threads = _checked_threads(device, threads, save_plan)
    if max_seconds is not None and max_seconds < min_seconds:
        raise UsageError(f"--max-seconds {max_seconds:g}, expected at least the {min_seconds:g} of --min-seconds")
    check_device(device)
    earlier = load_baseline(Path(compare)) if isinstance(compare, str | Path) else compare
    bundle, rivals = _opened(bundle), [_opened(rival) for rival in against]
    check_rivals(bundle, rivals)
    budgets = [point.budget for point in bundle.manifest.budgets] if all_budgets else []
    if all_budgets and not budgets:
        raise UsageError(
            f"{bundle.path} was calibrated for no budget; export with --budgets, or leave --all-budgets out"
        )
    if isinstance(data, str | Path):
        loaded = open_dataset(Path(data), size=bundle.input.shape[1:])
        data = loaded.labelled_for(bundle.architecture.classes, bundle.input.class_names)
    inputs = draw_inputs(bundle, data, seed)
    count = len(inputs.images) // batch * batch
    if not count:
        raise UsageError(f"{len(inputs.images)} images, expected at least one batch of {batch}; give more with --data")
    setup = Setup(
        schema_version=SCHEMA_VERSION,
        bundle=_benched(bundle),
        against=tuple(map(_benched, rivals)),
        device=device,
        threads=threads,
        seed=seed,
        budget=budget,
        data=inputs.name,
        inputs=count,
        notes=inputs.notes,
        machine=describe_machine(),
    )
    if earlier is not None:
        check_conditions(earlier, setup, batch)
    with ExitStack() as undo:
        kept: list[Path] = []
        if save_plan:
            choice = _EngineChoice(bundle, threads or 1, prepared)
            undo.callback(choice.take_back)
            kept.append(choice.measure(progress))
        costs = None
        if save_costs is not None:
            costs = measure_costs(bundle, threads, plan, progress, prepared, device)
            kept.append(Path(save_costs))
        result = _measured(
            setup,
            bundle,
            rivals,
            inputs,
            batch=batch,
            plan=plan,
            prepared=prepared,
            budgets=budgets,
            forced=forced,
            min_s=min_seconds,
            max_s=EXTENSION * min_seconds if max_seconds is None else max_seconds,
            min_iterations=min_iterations,
            warm_up_s=warm_up_seconds,
            steady=save_baseline is not None or earlier is not None,
            max_top1_drop=max_top1_drop,
            start_ups=start_ups,
            energy_s=energy_seconds,
            open_runtime=open_runtime,
            progress=progress,
        )
        if earlier is not None:
            result = replace(result, comparison=compare_with_baseline(result, earlier, noise_band))
        if result.valid:
            undo.pop_all()
            if costs is not None and save_costs is not None:
                write_costs(save_costs, costs)
            if save_baseline is not None:
                write_baseline(result, Path(save_baseline))
                kept.append(Path(save_baseline))
            result = replace(result, kept=tuple(map(str, kept)))
    _log.info("benched %s on %s: %s", bundle.path, device, result.verdict.words)
    return result


def _checked_threads(device: str, threads: int | None, save_plan: bool) -> int | None:
    """Threads of one engine on a device; ``None`` if its runtime has none."""
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}, expected {', '.join(DEVICES)}")
    if RUNTIME_OF[device] == "onnxruntime":
        return threads or 1
    if threads is not None:
        raise UsageError(f"{threads} threads on {device}, whose runtime has none; leave threads out")
    if save_plan:
        raise UsageError(f"an engine choice on {device}, whose runtime makes its own; leave it out")
    return None


def _opened(bundle: Bundle | str | Path) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else Bundle(bundle)


class _EngineChoice:
    """An engine choice that is put in place to be benched, and can be taken back if the run turns out INVALID.

    Args:
        bundle: bundle that it is for.
        threads: threads that one engine may use.
        prepared: whether engines prepared for this machine run.
    """

    def __init__(self, bundle: Bundle, threads: int, prepared: bool) -> None:
        self._bundle, self._threads, self._cache = bundle, threads, Cache(bundle)
        self._engines = whole_prepared(bundle, None, self._cache)[0] if prepared else PLAIN
        self._name = plan_file(plan_key(bundle, threads, self._engines.together))
        self._before = self._cache.read(self._name)

    def measure(self, progress: Progress) -> Path:
        """Measures an engine choice, puts it in place, and returns its file."""
        stage = "measuring a plan"
        progress(stage, 0.0)
        report = functools.partial(progress, stage)
        return write_plan(self._bundle, measure_plan(self._bundle, self._threads, report, self._engines), self._cache)

    def take_back(self) -> None:
        """Puts in place what was there before, if that was changed."""
        if self._cache.read(self._name) == self._before:
            return
        file = self._cache.folder / self._name
        if self._before is None:
            file.unlink(missing_ok=True)
        else:
            write_whole(file, self._before)


def _measured(
    setup: Setup,
    bundle: Bundle,
    against: Sequence[Bundle],
    inputs: Inputs,
    *,
    batch: int,
    plan: bool,
    prepared: bool,
    budgets: Sequence[float],
    forced: bool,
    min_s: float,
    max_s: float,
    min_iterations: int,
    warm_up_s: float,
    steady: bool,
    max_top1_drop: float,
    start_ups: int,
    energy_s: float,
    open_runtime: Callable[..., Runtime],
    progress: Progress,
) -> BenchResult:
    """Opens everything, times it, and puts the result together; see :func:`bench`."""
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
            against=against,
            budgets=budgets,
        )
        batches = _batches({candidate.input for candidate in candidates}, inputs.images[:count], batch)
        labels = None if inputs.labels is None else inputs.labels[:count]
        judge = _Judge(bundle, candidates, batch, batches, labels, max_top1_drop, steady)
        timed = [Case(candidate.name, _on(candidate, batches[candidate.input])) for candidate in candidates]
        alone = list(_alone(candidates, judge.paths, runtime, closing)) if batch == 1 else []
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
    cases = tuple(replace(case, joules_per_image=used.get(case.name)) for case in found.cases)
    caveats = (*judge.suspicions(), *_caveats((bundle, *against) if on_cpu else (), measured.disturbance))
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
        forced=forced_paths(bundle.options, cases, measured.rounds, bundle.architecture.gated_blocks),
        start_up=measure_start_up(
            bundle.path,
            [case.name for case in cases if (case.static and not case.rival) or case.name == DYNAMIC],
            start_ups if on_cpu else 0,
            threads=threads or 1,
            progress=progress,
            **choices,
        ),
    )


class _Judge:
    """Makes figures of times.

    Args:
        bundle: bundle that is run.
        candidates: everything that classifies.
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
        bundle: Bundle,
        candidates: Sequence[Candidate],
        batch: int,
        batches: Mapping[InputContract, Sequence[NDArray[np.float32]]],
        labels: NDArray[np.int64] | None,
        max_top1_drop: float,
        steady: bool,
    ) -> None:
        self._bundle, self._candidates, self._batch = bundle, candidates, batch
        self._labels, self._max_top1_drop, self._steady = labels, max_top1_drop, steady
        self._inputs = sum(map(len, batches[bundle.input]))
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

    def __call__(self, rounds: Mapping[str, Rounds], size: Round) -> Evidence:
        """Judges the times so far.

        Args:
            rounds: times of each case.
            size: calls of a case before the next one takes over.
        """

        def evidence(cases: Sequence[CaseResult]) -> Evidence:
            doubt = unsteady(cases) if self._steady else None
            return Evidence(cases, over, size, self._inputs, self._max_top1_drop, () if doubt is None else (doubt,))

        cases = self._cases(rounds)
        ratios = [paired_ratios(rounds[DYNAMIC], rounds[case.name], case.name) for case in cases if case.static]
        over = [ratio for ratio in ratios if ratio is not None]
        found = evidence(cases)
        if found.standing is None:
            return found
        best = self._right[found.standing.best.name]
        return evidence(
            [
                case
                if case.top1 is None
                else replace(case, top1_below_best=share_difference(self._right[case.name], best))
                for case in cases
            ]
        )

    def _cases(self, rounds: Mapping[str, Rounds]) -> list[CaseResult]:
        """Figures of every case; those of static cases and of the gate's own paths come with accuracy."""
        right, architecture = self._right, self._bundle.architecture
        base = next((each.name for each in self._candidates if each.name.startswith(STATIC)), None)
        gates_ms = float(np.median(rounds[_GATES])) / 1e6 if _GATES in rounds else 0.0
        results = []
        for candidate in self._candidates:
            name = candidate.name
            taken = self.paths.get(name, None if candidate.forced is None else candidate.forced[None])
            answers, alone = right.get(name), rounds.get(_engines_of(name))
            case = case_result(
                name,
                self._batch,
                rounds[name],
                ratio=None if base is None else paired_ratios(rounds[name], rounds[base], base),
                engine_ms=None if alone is None else float(np.median(alone)) / 1e6,
                top1=None if answers is None else float(np.mean(answers)),
                top1_change=None if answers is None or base is None else share_difference(answers, right[base]),
                computation_percentage=None
                if taken is None
                else float(computation_percentage(taken, self._bundle.options.costs).mean(dtype=np.float64)),
            )
            if alone is not None:
                between = paired_ratios(alone, rounds[name], name)
                case = replace(
                    case,
                    gate_us=1e3 * gates_ms / max(1, architecture.gated_blocks),
                    gate_share=gates_ms / case.latency_ms.p50,
                    dispatch_efficiency_interval=None if between is None else between.p50,
                )
            results.append(case)
        return results


@dataclass(frozen=True)
class _Measured:
    """All times, what a verdict can rest on, and how often that was looked at."""

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
) -> _Measured:
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
        found = judge(rounds, size)
        ahead = min(passed, max_s - passed)
        if not found.wants_more(max_s / passed if passed else 1.0) or ahead <= 0.0:
            return _Measured(found, rounds, size, looks, watch.stop())
        _log.info("timing for longer: %s", found.problems[0].what if found.problems else "the 95th percentile")
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
    candidates: Sequence[Candidate], paths: Mapping[str, NDArray[np.uint8]], runtime: Runtime, closing: ExitStack
) -> Iterator[Case]:
    """Engines without dispatch, and the gate without engines: timed in the same rounds as what they are part of."""
    for candidate in candidates:
        if candidate.runtime is not None:
            engines = engines_alone(candidate.runtime, paths[candidate.name])
            closing.callback(engines.forget)
            yield Case(_engines_of(candidate.name), engines)
    gates = gates_alone(runtime, len(paths[DYNAMIC]))
    if gates is not None:
        closing.callback(gates.forget)
        yield Case(_GATES, gates)


def _engines_of(name: str) -> str:
    return f"{name} engines"


def _caveats(bundles: Sequence[Bundle], disturbance: Disturbance) -> Iterator[str]:
    """Weaknesses of any verdict, one line each."""
    for bundle in bundles:
        note = made_for_another_cpu(bundle.manifest.int8_weight_bits)
        if note is not None:
            yield f"{bundle.name} was {note}"
    if disturbance.throttled_periods:
        yield (
            f"the container's CPU quota stopped this process in {disturbance.throttled_periods} periods while cases"
            " were timed, which lengthens calls at random; raise the quota, or lower --threads"
        )


def _benched(bundle: Bundle) -> BenchedBundle:
    return BenchedBundle(
        name=bundle.name,
        digest=bundle.digest,
        checkpoint=bundle.manifest.source.sha256,
        architecture=bundle.architecture.name,
        options=bundle.options.names,
    )
