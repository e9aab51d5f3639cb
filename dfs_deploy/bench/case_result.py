"""One case of a bench, and its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dfs_deploy.bench.candidates import RIVAL, STATIC
from dfs_deploy.bench.clock import Timing
from dfs_deploy.bench.intervals import Interval, Ratios


@dataclass(frozen=True)
class CaseResult:
    """One case of a bench.

    Attributes:
        name: ``dfs``, ``static-fp32``, ``static-fp16``, ``static-int8``; ``static-int8@NAME`` and the like for a
            network of another bundle; ``dfs-budget-20`` for a budget in percent; ``dfs-forced-25-int8``,
            ``trace-25-int8`` and the like for forced paths.
        batch: images a call.
        timing: latency of a call.
        engine_ms: of a dynamic case at batch 1, the median time of the engines alone that the same inputs run, one
            after another without gates and dispatch, in the same turns, in milliseconds.
        gate_us: of the same, the median time of one gate step, in microseconds.
        gate_share: of the same, the median time of all gate steps of one image over the median latency.
        efficiency: of the same, the 95 % interval of ``dispatch_efficiency``, paired by turn; ``None`` for fewer than
            six turns.
        top1: share of right answers, 0 to 1, where labels are known.
        top1_change: ``top1`` less that of the normaliser, on the same images.
        top1_below_best: ``top1`` less that of the most accurate of ``dfs`` and the static cases, on the same images.
        computation_percentage: mean over the inputs, of a dynamic case and of a trace.
        ratios: latency over that of the normaliser, the most precise static engine.
        joules_per_image: all that was used while it ran, idle power included, where a sensor was found.
    """

    name: str
    batch: int
    timing: Timing
    engine_ms: float | None = None
    gate_us: float | None = None
    gate_share: float | None = None
    efficiency: Interval | None = None
    top1: float | None = None
    top1_change: Interval | None = None
    top1_below_best: Interval | None = None
    computation_percentage: float | None = None
    ratios: Ratios | None = None
    joules_per_image: float | None = None

    @property
    def throughput_per_s(self) -> float:
        """Images a second at the mean latency."""
        return 1e3 * self.batch / self.timing.mean

    @property
    def dispatch_efficiency(self) -> float | None:
        """Median time of the engines alone over the median latency; ``None`` if the engines were not timed."""
        return None if self.engine_ms is None else self.engine_ms / self.timing.p50

    @property
    def static(self) -> bool:
        """Whether it is a static baseline."""
        return self.name.startswith(STATIC)

    @property
    def rival(self) -> bool:
        """Whether it is a network of another bundle."""
        return RIVAL in self.name

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
            "ratio": None if self.ratios is None else asdict(self.ratios),
            "joules_per_image": self.joules_per_image,
        }
        if self.engine_ms is not None:
            case |= {
                "engine_ms": self.engine_ms,
                "gate_us": self.gate_us,
                "gate_share": self.gate_share,
                "dispatch_efficiency": self.dispatch_efficiency,
                "dispatch_efficiency_interval": None if self.efficiency is None else asdict(self.efficiency),
            }
        if self.top1 is not None:
            case["top1"] = self.top1
        if self.top1_change is not None:
            case["top1_change"] = asdict(self.top1_change)
        if self.top1_below_best is not None:
            case["top1_below_best"] = asdict(self.top1_below_best)
        if self.computation_percentage is not None:
            case["computation_percentage"] = self.computation_percentage
        return case
