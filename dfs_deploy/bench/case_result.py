"""One case of a bench, and its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dfs_deploy.bench.candidates import STATIC
from dfs_deploy.bench.clock import Timing
from dfs_deploy.bench.intervals import Interval, Ratios


@dataclass(frozen=True)
class CaseResult:
    """One case of a bench.

    Attributes:
        name: ``dfs``, ``static-fp32``, ``static-fp16``, ``static-int8``, or ``dfs-forced-25-int8``, ``trace-25-int8``
            and the like.
        batch: images a call.
        timing: latency of a call.
        engine_ms: of a dynamic case at batch 1, the mean over inputs of the sum of the standalone medians of the
            engines that they ran, in milliseconds.
        gate_us: likewise, the median of one gate step, in microseconds.
        gate_share: likewise, the standalone medians of all gate steps of one image over the median latency.
        top1: share of right answers, 0 to 1, where labels are known.
        top1_change: ``top1`` less that of the normaliser, on the same images.
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
    top1: float | None = None
    top1_change: Interval | None = None
    computation_percentage: float | None = None
    ratios: Ratios | None = None
    joules_per_image: float | None = None

    @property
    def throughput_per_s(self) -> float:
        """Images a second at the mean latency."""
        return 1e3 * self.batch / self.timing.mean

    @property
    def dispatch_efficiency(self) -> float | None:
        """Time of the engines alone over the median latency; ``None`` where the engines were not timed."""
        return None if self.engine_ms is None else self.engine_ms / self.timing.p50

    @property
    def static(self) -> bool:
        """Whether it is a static baseline."""
        return self.name.startswith(STATIC)

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
            }
        if self.top1 is not None:
            case["top1"] = self.top1
        if self.top1_change is not None:
            case["top1_change"] = asdict(self.top1_change)
        if self.computation_percentage is not None:
            case["computation_percentage"] = self.computation_percentage
        return case
