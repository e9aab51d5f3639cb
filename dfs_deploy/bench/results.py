"""What a bench found, as data: the object of ``bench --json`` is made from this and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from dfs_deploy.bench.candidates import BUDGET, DYNAMIC
from dfs_deploy.bench.case_result import CaseResult
from dfs_deploy.bench.clock import NOISY, TAIL, Turn
from dfs_deploy.bench.energy_cases import EnergyReport
from dfs_deploy.bench.forced import ForcedPath
from dfs_deploy.bench.intervals import Ratios
from dfs_deploy.bench.jetson import JetsonRun
from dfs_deploy.bench.machine import Machine
from dfs_deploy.bench.paths import PathLatency
from dfs_deploy.bench.start_up import StartUp
from dfs_deploy.bench.state import Disturbance, MachineState
from dfs_deploy.bench.validity import Problem
from dfs_deploy.bench.verdict import Verdict

SCHEMA_VERSION = 1
"""Of the object of ``bench --json``; raised when a key goes away or changes its meaning."""

CLOCK = (
    "one call, from a normalised float32 image in memory to logits in memory; loading, decoding and normalising are"
    " outside; cases take turns, and the first calls of a turn are not measured; percentiles are linear between"
    f" samples, no sample is dropped, and {TAIL} samples must lie beyond a percentile above the median"
)


@dataclass(frozen=True)
class BundleFacts:
    """The bundle that was run.

    Attributes:
        name: of its directory, without suffix.
        digest: of its manifest.
        checkpoint: SHA-256 of the checkpoint that it was made from.
        architecture: as ``ResNet-38``.
        options: names, in the order of ``option_share``.
    """

    name: str
    digest: str
    checkpoint: str
    architecture: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class BenchResult:
    """A whole bench.

    Attributes:
        bundle: bundle that was run.
        against: bundles of the static networks that it was compared with besides its own.
        device: device as asked for.
        threads: threads that one engine may use; ``None`` on a device whose runtime has none.
        seed: of the order of inputs.
        budget: that the dynamic network was to hold, 0 to 1; ``None`` for the gate as trained.
        data: name of the inputs.
        inputs: how many different images were run.
        notes: what was assumed or noticed while they were read, a line each.
        machine: where.
        state: of the machine, before.
        disturbance: of the timing, by others.
        turn: calls of a case before the next one's.
        looks: how often the times were looked at: above one if the run was extended.
        runtime: provider, version, gate.
        cases: in the order in which they were asked for.
        over_static: the dynamic network's latency over that of each static engine.
        option_share: for each gated block, the share of inputs that took each option.
        rival: latency of the dynamic network over that of the static case that the verdict compares it with; ``None``
            if accuracy alone decides, or if there is none.
        problems: why the run is INVALID; empty if it is VALID.
        verdict: what to ship.
        paths: the fastest, the commonest and the slowest; empty with batches.
        forced: forced paths against their traces; empty where none were asked for.
        start_up: of a process that runs one case, by case; empty where it was not measured.
        energy: of every case, or ``None`` where it was not measured.
        no_energy: why not.
        jetson: the board and its state, where this is one.
    """

    bundle: BundleFacts
    device: str
    threads: int | None
    seed: int
    budget: float | None
    data: str
    inputs: int
    machine: Machine
    state: MachineState
    disturbance: Disturbance
    turn: Turn
    runtime: dict[str, Any]
    cases: tuple[CaseResult, ...]
    over_static: tuple[Ratios, ...]
    option_share: tuple[tuple[float, ...], ...]
    problems: tuple[Problem, ...]
    verdict: Verdict
    against: tuple[BundleFacts, ...] = ()
    notes: tuple[str, ...] = ()
    looks: int = 1
    rival: Ratios | None = None
    paths: tuple[PathLatency, ...] = ()
    forced: tuple[ForcedPath, ...] = ()
    start_up: tuple[StartUp, ...] = ()
    energy: EnergyReport | None = None
    no_energy: str = ""
    jetson: JetsonRun | None = None

    @property
    def dynamic(self) -> CaseResult:
        """The case of the dynamic network."""
        return self.case(DYNAMIC)

    @property
    def statics(self) -> tuple[CaseResult, ...]:
        """The static cases: the bundle's own from the most precise on, then those of other bundles."""
        return tuple(case for case in self.cases if case.static)

    @property
    def budgets(self) -> tuple[CaseResult, ...]:
        """The cases of the dynamic network at budgets, in the order in which they were asked for."""
        return tuple(case for case in self.cases if case.name.startswith(BUDGET))

    @property
    def normaliser(self) -> CaseResult | None:
        """The case that others are divided by: the most precise static engine, or ``None`` where there is none."""
        return next(iter(self.statics), None)

    @property
    def valid(self) -> bool:
        """Whether what the verdict reads can be relied on."""
        return not self.problems

    @property
    def noisy(self) -> tuple[str, ...]:
        """Static cases, which do the same work each time, whose latency varied by more than 2.5 %."""
        return tuple(case.name for case in self.statics if case.timing.cov > NOISY)

    def case(self, name: str) -> CaseResult:
        """The case of a name; raises KeyError where there is none."""
        for case in self.cases:
            if case.name == name:
                return case
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """The object of ``bench --json``; docs/bench.md describes it."""
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "bundle": self.bundle,
            "against": self.against,
            "device": self.device,
            "threads": self.threads,
            "seed": self.seed,
            "budget": self.budget,
            "data": self.data,
            "inputs": self.inputs,
            "notes": self.notes,
            "machine": self.machine,
            "state": self.state,
            "disturbance": self.disturbance,
            "runtime": self.runtime,
            "clock": CLOCK,
            "turn": self.turn,
            "looks": self.looks,
            "valid": self.valid,
            "problems": self.problems,
            "noisy": self.noisy,
            "verdict": self.verdict,
            "option_share": self.option_share,
            "energy": self.energy,
            "no_energy": self.no_energy,
            "jetson": self.jetson,
            "cases": [case.as_json() for case in self.cases],
            "over_static": self.over_static,
            "rival": self.rival,
            "paths": [path.as_json() for path in self.paths],
            "forced": self.forced,
            "start_up": [{**msgspec.to_builtins(start), "total_ms": start.total_ms} for start in self.start_up],
        }
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
        return plain
