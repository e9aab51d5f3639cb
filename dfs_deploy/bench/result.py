"""What a bench found, as one tree: the object of ``bench --json``, of a baseline, and what a report shows.

Attributes have the names of the JSON's keys. Times are in the unit that a name ends in; shares are 0 to 1, percentages
0 to 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec

from dfs_deploy.errors import SavedResultError, UsageError
from dfs_deploy.io.files import read_file
from dfs_deploy.io.json_files import MAX_JSON, Measured, Name, Share, VersionedFormat
from dfs_deploy.io.text import first_line, one_line
from dfs_deploy.options import Budget
from dfs_deploy.paired import Interval
from dfs_deploy.thresholds import VERDICT_MAX_TOP1_DROP

SCHEMA_VERSION = 1
"""Version of the JSON's keys; raised if a key goes away or changes its meaning."""

DYNAMIC: Final = "dfs"
"""Name of the case of the dynamic network."""

STATIC: Final = "static-"
"""Begin of the names of static cases; a precision follows, or ``POLICY``."""

POLICY: Final = "policy"
"""Stands for the precision of a network that always takes its own path, of more than one precision."""

RIVAL: Final = "@"
"""Stands between the name of a case and that of the other bundle that it is of."""

FORCED: Final = f"{DYNAMIC}-forced-"
"""Begin of the names of cases whose path is forced; percents and a precision follow."""

BUDGET: Final = f"{DYNAMIC}-budget-"
"""Begin of the names of cases that hold a budget; percents follow."""

_LEAST, _MOST = 1e-9, 1e9


class Ratios(msgspec.Struct, frozen=True):
    """Latency of one case over that of another, measured in the same rounds.

    Attributes:
        over: name of the other case.
        mean: ratio of the mean latencies in a round, of the median round: a disturbed round hardly moves it.
        p50: ratio of the medians over calls.
        p95: ratio of the 95th percentiles over calls; ``None`` if there are too few calls to know it.
    """

    over: Name
    mean: Interval
    p50: Interval
    p95: Interval | None

    def __post_init__(self) -> None:
        for ratio in (self.mean, self.p50, self.p95):
            if ratio is not None and not all(_LEAST <= x <= _MOST for x in (ratio.value, ratio.low, ratio.high)):
                raise ValueError(
                    f"ratio of value {ratio.value:g}, low {ratio.low:g} and high {ratio.high:g}, expected"
                    f" {_LEAST:g} to {_MOST:g}"
                )


class Latency(msgspec.Struct, frozen=True):
    """Latency of one case, in milliseconds per call; no call is dropped as an outlier.

    Attributes:
        p50: median.
        p90: 90th percentile, linear between samples; ``None`` if fewer than ten samples lie beyond it (p90 takes 100
            samples, p95 200, p99 1000).
        p95: 95th percentile, in the same way.
        p99: 99th percentile, in the same way.
        mean: arithmetic mean.
        min: least.
        max: greatest.
        cov: coefficient of variation: standard deviation over mean.
    """

    p50: Measured
    p90: Measured | None
    p95: Measured | None
    p99: Measured | None
    mean: Measured
    min: Measured
    max: Measured
    cov: float


class CaseResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One case of a bench. A key whose value is not known is left out of the JSON if it has a default here.

    Attributes:
        name: ``dfs``, ``static-fp32``, ``static-fp16``, ``static-int8``; ``dfs@NAME``, ``static-int8@NAME`` and the
            like for a network of another bundle; ``dfs-budget-20`` for a budget in percent; ``dfs-forced-25-int8`` and
            ``trace-25-int8`` and the like for forced paths.
        batch: images per call.
        latency_ms: latency of a call.
        throughput_per_s: images per second at the mean latency.
        iterations: measured calls.
        ratio: latency over that of the normaliser, the most precise static engine; ``None`` without one, and for fewer
            than six rounds.
        joules_per_image: energy used while it ran, idle power included; ``None`` without a sensor.
        engine_ms: median time of the engines that the same inputs run, one after another without gates and dispatch,
            in the same rounds. Dynamic cases at batch 1, as the next four.
        gate_us: median time of one step of the gate.
        gate_share: median time of all gate steps of one image over the median latency.
        dispatch_efficiency: ``engine_ms`` over the median latency.
        dispatch_efficiency_interval: the same with its interval, paired by round; ``None`` for fewer than six rounds.
        predicted_ms: median over the inputs of what a latency table measured in this run says of their paths, gate,
            first block and head included; of ``dfs`` alone, ``None`` without ``--save-costs`` and with batches.
        prediction_ratio: median latency over ``predicted_ms``.
        top1: share of right answers, if labels are known.
        top1_change: ``top1`` less that of the normaliser, on the same images.
        top1_below_best: ``top1`` less that of the most accurate of the dynamic and the static cases, on the same
            images.
        computation_percentage: mean over the inputs, of a dynamic case and of a trace.
    """

    name: Name
    batch: int
    latency_ms: Latency
    throughput_per_s: float
    iterations: int
    ratio: Ratios | None
    joules_per_image: float | None
    engine_ms: Measured | None = None
    gate_us: float | None = None
    gate_share: float | None = None
    dispatch_efficiency: float | None = None
    dispatch_efficiency_interval: Interval | None = None
    predicted_ms: Measured | None = None
    prediction_ratio: float | None = None
    top1: Share | None = None
    top1_change: Interval | None = None
    top1_below_best: Interval | None = None
    computation_percentage: float | None = None

    @property
    def static(self) -> bool:
        """Whether it is a static network."""
        return self.name.startswith(STATIC)

    @property
    def dynamic(self) -> bool:
        """Whether it is a dynamic network whose gate decides, at its own operating point or at a budget."""
        return self.name.partition(RIVAL)[0] == DYNAMIC or self.name.startswith(BUDGET)

    @property
    def bundle(self) -> str:
        """Name of the other bundle that it is of; empty for the one that is run."""
        return self.name.partition(RIVAL)[2]

    @property
    def rival(self) -> bool:
        """Whether it is a network of another bundle."""
        return RIVAL in self.name


class BenchedBundle(msgspec.Struct, frozen=True):
    """Bundle that was run.

    Attributes:
        name: name of its directory, without suffix.
        digest: digest of its manifest.
        checkpoint: SHA-256 of the checkpoint that it was made from.
        architecture: name of the architecture, as in ``ResNet-38``.
        options: names of the options, in the order of ``option_share``.
        accuracy_budget: share of right answers that its accuracy budget may lose, at which its dynamic network runs if
            no budget is named; ``None`` without one, for the gate as trained.
    """

    name: str
    digest: Name
    checkpoint: Name
    architecture: Name
    options: tuple[str, ...]
    accuracy_budget: Share | None = None

    @property
    def point(self) -> str:
        """Operating point at which its dynamic network runs if no budget is named, in words; empty if as trained."""
        if self.accuracy_budget is None:
            return ""
        return f"at its accuracy budget (at most {100 * self.accuracy_budget:.2f} points of top-1 lost)"


class NamedBundle(Protocol):
    """Bundle, open or as a bench tells of it."""

    @property
    def name(self) -> str:
        """Name of its directory, without suffix."""

    @property
    def digest(self) -> str:
        """Digest of its manifest."""


def other_names(bundle: NamedBundle, others: Sequence[NamedBundle]) -> list[str]:
    """Names of other bundles in the names of cases: they differ from one another and from that of the one that is run.

    Args:
        bundle: bundle that is run.
        others: bundles that it is compared with.
    """
    names = [one_line(other.name, 80) for other in others]
    taken = [*names, one_line(bundle.name, 80)]
    return [
        name if taken.count(name) == 1 else f"{name}-{other.digest[:8]}"
        for name, other in zip(names, others, strict=True)
    ]


class Machine(msgspec.Struct, frozen=True):
    """Machine as a report names it.

    Attributes:
        cpu: model name of the CPU.
        cores: logical cores that this process may use.
        system: operating system and architecture.
        int8: name of the instructions for 8-bit products that the CPU has, or an empty string.
        float16: whether the CPU computes in float16 and ONNX Runtime has kernels for it: 64-bit Arm with FEAT_FP16.
        load: mean number of runnable processes over the last minute; ``None`` if the system does not say.
        quota: CPU seconds per second that a container's limit grants this process; ``None`` without one.
    """

    cpu: Name
    cores: int
    system: Name
    int8: Name
    float16: bool
    load: float | None
    quota: float | None = None


class MachineState(msgspec.Struct, frozen=True):
    """State of the clocks before timing; ``None`` for what the system does not say.

    Attributes:
        affinity: logical CPUs that this process may use.
        governor: governor of frequency scaling of those CPUs.
        frequency_mhz: mean frequency of those CPUs.
        turbo: whether the CPU may exceed its nominal frequency.
        virtual: whether the CPU is a hypervisor's guest, which neighbours may slow.
        load: mean number of runnable processes over the last minute.
    """

    affinity: tuple[int, ...]
    governor: str | None
    frequency_mhz: float | None
    turbo: bool | None
    virtual: bool
    load: float | None


class Disturbance(msgspec.Struct, frozen=True):
    """CPU time that others took while cases were timed; ``None`` for what the system does not say.

    Attributes:
        preemptions_per_s: times per second that the system gave this process's CPU to another.
        steal: share of CPU time that the hypervisor gave to other guests.
        throttled_periods: periods in which the quota of a container's control group stopped its processes; ``None``
            without a quota as well.
    """

    preemptions_per_s: float | None
    steal: float | None
    throttled_periods: int | None = None


class Round(msgspec.Struct, frozen=True):
    """Calls that a case makes before the next case takes over.

    Attributes:
        measured: measured calls in a row.
        unmeasured: calls before them. They bring what the case reads back into the cache: a dynamic network, whose
            inputs take different engines, needs dozens of calls, and would look a tenth slower than it is in an
            application.
    """

    measured: int = 16
    unmeasured: int = 0


class Problem(msgspec.Struct, frozen=True):
    """Reason why a run is INVALID.

    Attributes:
        what: observation, and what was expected.
        remedy: action that helps.
        about: ``inputs`` if every figure is doubtful, ``clock`` if only the times are.
    """

    what: str
    remedy: str
    about: Literal["inputs", "clock"] = "clock"


class Verdict(msgspec.Struct, frozen=True):
    """Answer to what to ship.

    Attributes:
        choice: name of a case, or ``None`` if this run does not decide.
        words: verdict and the figures that decide it, one sentence.
        caveats: weaknesses of the verdict, one line each.
        rule: rule that it follows from.
    """

    choice: str | None
    words: str
    caveats: tuple[str, ...]
    rule: str


PathKind = Literal["fastest", "commonest", "slowest"]
"""Why a path is timed: by the time of its engines, or by count."""


class PathLatency(msgspec.Struct, frozen=True):
    """One path, as the gate chose it.

    Attributes:
        kind: ``fastest`` or ``slowest`` by the time of its engines, or ``commonest``.
        path: option name of each block after the first.
        inputs: number of inputs that took it.
        share: share of the inputs that took it.
        computation_percentage: computation percentage of the path.
        engine_ms: sum of the standalone medians of its engines.
        iterations: measured calls.
        latency_ms: latency of a call at batch 1, on the inputs that took it.
    """

    kind: PathKind
    path: tuple[str, ...]
    inputs: int
    share: float
    computation_percentage: float
    engine_ms: float
    iterations: int
    latency_ms: Latency


class ForcedPath(msgspec.Struct, frozen=True):
    """One share of the blocks that may be skipped at one precision; times are medians of a call.

    Attributes:
        share: percent of the blocks that may be skipped and are to run; the others are skipped.
        blocks: number of blocks that run: that share of them, rounded down.
        option: name of the option that they run.
        precision: precision of the option's engines.
        dispatch_ms: time of the runtime, the gate stepping at every block.
        trace_ms: time of the same path as one engine, without gates.
        static_ms: time of the static engine of this precision; ``None`` if the bundle has none.
        over_static: dispatch over static; ``None`` without it, and for fewer than six rounds.
        over_trace: dispatch over trace, in the same way.
        gate_us: time of the gate's step per decided block; ``None`` with batches and if nothing is decided.
        dispatch_us: rest of ``dispatch_ms`` without engines and gate steps, per decided block. Below zero if engines
            are faster one after another than each by itself.
    """

    share: int
    blocks: int
    option: str
    precision: str
    dispatch_ms: float
    trace_ms: float
    static_ms: float | None
    over_static: Ratios | None
    over_trace: Ratios | None
    gate_us: float | None
    dispatch_us: float | None


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    """Start of a process of its own for one case, medians over processes; files are in the system's cache.

    Attributes:
        name: name of the case.
        processes: number of processes.
        import_ms: import of NumPy, ONNX Runtime and dfs-deploy; the interpreter's own start is left out.
        load_ms: opening the bundle, checking every digest, making every session.
        first_result_ms: first call, batch 1.
        total_ms: sum of these three.
        rss_mb: resident memory after twenty results, in 10**6 bytes; ``None`` if the system does not say.
        peak_rss_mb: greatest resident memory until then.
        loaded_mb: ``rss_mb`` less the resident memory after the imports.
    """

    name: str
    processes: int
    import_ms: float
    load_ms: float
    first_result_ms: float
    total_ms: float
    rss_mb: float | None
    peak_rss_mb: float | None
    loaded_mb: float | None


class CaseEnergy(msgspec.Struct, frozen=True):
    """Energy of one case.

    Attributes:
        name: name of the case.
        joules_per_image: all energy of the window over the images run in it; idle power is part of it.
        joules_per_image_over_idle: the same without what the machine would have used idle.
        watts: mean power.
        images: images run in the window.
        seconds: length of the window.
    """

    name: str
    joules_per_image: float
    joules_per_image_over_idle: float
    watts: float
    images: int
    seconds: float


class EnergyReport(msgspec.Struct, frozen=True):
    """Energy of every case.

    Attributes:
        source: name of the sensor.
        rail: measured rail, or rails that are added.
        rate_hz: samples per second, in the idle window.
        idle_watts: power before, while nothing ran.
        idle_seconds: length of that window.
        cases: energy of each case, in the order in which they were run.
    """

    source: str
    rail: str
    rate_hz: float
    idle_watts: float
    idle_seconds: float
    cases: tuple[CaseEnergy, ...]


class Jetson(msgspec.Struct, frozen=True):
    """Model and software of a Jetson; ``None`` for what is not installed or not said.

    Attributes:
        model: model name, as in ``NVIDIA Jetson Orin Nano Developer Kit``.
        l4t: release of Jetson Linux, as in ``36.4.3``.
        jetpack: version of the package ``nvidia-jetpack``, or the major version that goes with Jetson Linux.
        tensorrt: version of the library.
        cuda: version of the toolkit.
    """

    model: str | None
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    cuda: str | None


class PowerState(msgspec.Struct, frozen=True):
    """State that a Jetson's speed depends on; ``None`` for what is not said.

    Attributes:
        mode: power mode of nvpmodel, as in ``MAXN``.
        clocks_locked: whether CPU and GPU stay at one frequency, as after ``jetson_clocks``.
        celsius: temperature of the hottest sensor.
        sensor: name of that sensor.
    """

    mode: str | None
    clocks_locked: bool | None
    celsius: float | None
    sensor: str | None


class JetsonRun(msgspec.Struct, frozen=True):
    """Board that a bench ran on, and its state before and after."""

    board: Jetson
    before: PowerState
    after: PowerState


class Change(msgspec.Struct, frozen=True):
    """Change of one case's ratio over the normaliser.

    Attributes:
        name: name of the case.
        over: name of the normaliser.
        before: ratio in the baseline.
        after: ratio now.
        change: after over before; above one is slower.
        regressed: whether it is slower beyond the noise band, and its 95 % interval does not hold one.
    """

    name: str
    over: str
    before: float
    after: float
    change: Interval
    regressed: bool


class Comparison(msgspec.Struct, frozen=True):
    """Bench against a baseline.

    Attributes:
        noise_band: share by which a ratio may rise.
        changes: change of each case that both have.
        notes: differences between the two that are no reason to refuse, one line each.
        failures: reasons why the check fails, one line each; empty if it passes.
    """

    noise_band: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a bench runs, on what and how: known before anything is timed.

    Attributes:
        schema_version: version of the keys.
        bundle: bundle that is run.
        against: other bundles that it is compared with, in the order in which they were given.
        device: device as asked for.
        threads: threads that one engine may use; ``None`` on a device whose runtime has none.
        seed: seed of the order of inputs.
        budget: budget that the case ``dfs`` is to hold, 0 to 1 or ``trained``; ``None`` for the bundle's own, see
            ``Runtime.set_budget``.
        data: name of the inputs.
        inputs: number of different images that are run.
        notes: assumptions and findings while they were read, one line each.
        machine: machine that it runs on.
    """

    schema_version: int
    bundle: BenchedBundle
    against: tuple[BenchedBundle, ...]
    device: Name
    threads: int | None
    seed: int
    budget: Budget
    data: Name
    inputs: int
    notes: tuple[str, ...]
    machine: Machine


class BenchResult(Setup, frozen=True, kw_only=True, omit_defaults=True):
    """Whole bench: the object of ``bench --json``, with the keys of its setup.

    Attributes:
        state: state of the machine, before.
        disturbance: disturbance of the timing, by others.
        runtime: provider, version, gate and more, as the runtime describes itself.
        clock: part of a call that the clock covers, in words.
        round: calls of a case before the next one takes over; ``turn`` in the JSON.
        looks: number of times that the times were looked at: above one if the run was extended.
        valid: whether what the verdict reads can be relied on.
        problems: reasons why the run is INVALID; empty if it is VALID.
        noisy: names of static cases, which do the same work each time, whose latency varied by more than 2.5 %.
        verdict: network to ship, and why.
        option_share: share of inputs that took each option, of each block after the first.
        energy: energy of every case; ``None`` if it was not measured.
        no_energy: reason why it was not measured.
        jetson: board and its state, if it ran on one.
        cases: the cases, in the order in which they were asked for.
        over_static: latency of the ``contender`` over that of each static case.
        rival: latency of the ``contender`` over that of the static case that the verdict compares it with; ``None`` if
            accuracy decides without it, and if there is none.
        paths: fastest, commonest and slowest path; empty with batches.
        forced: forced paths against their traces; empty if none were asked for.
        start_up: start of a process that runs one case, by case; empty if it was not measured.
        kept: files that were asked for and that the run left behind: engine choice, latency table, baseline.
        comparison: changes since the baseline; ``None`` without one.
        contender: name of the dynamic case that the verdict speaks of: ``dfs``, or the one that was chosen of several.
        max_top1_drop: share of right answers that the verdict lets a case lose against the most accurate one.
    """

    state: MachineState
    disturbance: Disturbance
    runtime: dict[str, Any]
    clock: str
    round: Round = msgspec.field(name="turn")
    looks: int
    valid: bool
    problems: tuple[Problem, ...]
    noisy: tuple[str, ...]
    verdict: Verdict
    option_share: tuple[tuple[float, ...], ...]
    energy: EnergyReport | None
    no_energy: str
    jetson: JetsonRun | None
    cases: tuple[CaseResult, ...]
    over_static: tuple[Ratios, ...]
    rival: Ratios | None
    paths: tuple[PathLatency, ...]
    forced: tuple[ForcedPath, ...]
    start_up: tuple[StartUp, ...]
    kept: tuple[str, ...] = ()
    comparison: Comparison | None = None
    contender: Name = DYNAMIC
    max_top1_drop: Share = VERDICT_MAX_TOP1_DROP

    def __post_init__(self) -> None:
        if self.case(DYNAMIC) is None:
            raise ValueError(f"no case named {DYNAMIC}")

    def __repr__(self) -> str:
        kind = "VALID" if self.valid else "INVALID"
        cases = ", ".join(f"{one_line(case.name)} {case.latency_ms.p50:.3g} ms" for case in self.cases[:4])
        more = f", {len(self.cases) - 4} more" if len(self.cases) > 4 else ""
        return f"<BenchResult {one_line(self.bundle.name)} on {self.device}, {kind}: {cases}{more}>"

    def case(self, name: str) -> CaseResult | None:
        """Case of a name, or ``None``."""
        return next((case for case in self.cases if case.name == name), None)

    @property
    def dynamic(self) -> CaseResult:
        """Case of the dynamic network."""
        return next(case for case in self.cases if case.name == DYNAMIC)

    def point_of(self, digest: str) -> str:
        """Operating point of a bundle's dynamic network, in words; empty if it was neither named nor the bundle's own.

        Args:
            digest: digest of the bundle, one of those that were run; the budget that was named is for the first.
        """
        if digest == self.bundle.digest and self.budget is not None:
            return f"at budget {100 * self.budget:g} %" if isinstance(self.budget, float | int) else "as trained"
        return next((each.point for each in (self.bundle, *self.against) if each.digest == digest), "")

    @property
    def statics(self) -> tuple[CaseResult, ...]:
        """Static cases: the bundle's own from the most precise on, then those of other bundles."""
        return tuple(case for case in self.cases if case.static)

    @property
    def budgets(self) -> tuple[CaseResult, ...]:
        """Cases of dynamic networks at budgets, in the order in which they were asked for."""
        return tuple(case for case in self.cases if case.name.startswith(BUDGET))

    @property
    def compared(self) -> tuple[CaseResult, ...]:
        """Cases that answer what to ship: dynamic ones and static ones, without forced paths and traces."""
        return tuple(case for case in self.cases if case.dynamic or case.static)

    @property
    def normaliser(self) -> CaseResult | None:
        """Case that others are divided by: the most precise static engine, or ``None`` if there is none."""
        return next(iter(self.statics), None)

    def owner_of(self, case: CaseResult) -> str:
        """Digest of the bundle that a case is of."""
        names = other_names(self.bundle, self.against)
        digests = {name: other.digest for name, other in zip(names, self.against, strict=True)}
        return digests.get(case.bundle, self.bundle.digest)

    def as_json(self) -> dict[str, Any]:
        """The tree as plain values; docs/bench.md describes the keys."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain


FORMAT = VersionedFormat(
    "saved bench",
    BenchResult,
    SCHEMA_VERSION,
    "make it with dfs-deploy bench --save-baseline, or --json",
    error=SavedResultError,
)
"""File that ``bench --json`` or ``bench --save-baseline`` wrote; keys that are not known are passed over."""


def load_bench(file: Path) -> BenchResult:
    """Reads a saved bench.

    Raises:
        UsageError: there is no file that can be read.
        SavedResultError: it is no bench, or one of another version.
    """
    try:
        content = read_file(file, MAX_JSON)
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({first_line(error)}); {FORMAT.remedy}") from error
    return FORMAT.decode(content, file)
