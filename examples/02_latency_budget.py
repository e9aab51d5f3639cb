"""Embeds a network in a loop that must keep up: where it gets late, the network computes less.

    python examples/digits_bundle.py
    python examples/02_latency_budget.py digits.dfs --data digits-test.npz --target-ms 0.3

Each frame has a time that it may take. The loop watches the slowest frames of a window: while they are late it goes to
the next smaller budget that export calibrated, and while they are early it goes back up. Nothing is loaded again:
``set_budget`` changes a bias on the gate's scores, from the next frame on.

``--slow-down 3`` makes frames of the middle third take that much longer, as when another program takes the CPU.
Needs: pip install .
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dfs_deploy import Runtime, load_dataset
from dfs_deploy.errors import DfsDeployError

WINDOW = 50
"""Frames that are judged together."""

LATE_SHARE = 0.1
"""Frames of a window that may be late."""

EARLY = 0.8
"""Share of the target below which there is room to compute more."""


@dataclass
class Governor:
    """Chooses a budget from the latencies of the frames.

    Attributes:
        budgets: to choose from, least first.
        target_ms: that a frame may take.
        level: index of the budget in force; begins with the greatest.
    """

    budgets: Sequence[float]
    target_ms: float
    level: int = field(init=False)
    _window: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=WINDOW))

    def __post_init__(self) -> None:
        self.level = len(self.budgets) - 1

    @property
    def budget(self) -> float:
        """The budget in force."""
        return self.budgets[self.level]

    def observe(self, latency_ms: float) -> bool:
        """Notes a frame; says whether the budget changed. A new budget is judged by frames of its own alone."""
        self._window.append(latency_ms)
        if len(self._window) < WINDOW:
            return False
        slow = float(np.quantile(self._window, 1.0 - LATE_SHARE))
        step = -1 if slow > self.target_ms else 1 if slow < EARLY * self.target_ms else 0
        level = min(max(self.level + step, 0), len(self.budgets) - 1)
        self._window.clear()
        changed = level != self.level
        self.level = level
        return changed


def main() -> None:
    """Runs frames, steers, and tells what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a bundle with budgets (dfs-deploy export --budgets)")
    parser.add_argument("--data", required=True, help="frames: an .npz, a folder by class, a CIFAR folder")
    parser.add_argument("--target-ms", type=float, required=True, help="time that a frame may take")
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--slow-down", type=float, default=1.0, help="factor on the middle third's time")
    options = parser.parse_args()

    data = load_dataset(options.data)
    with Runtime(options.bundle) as net:
        if not net.budgets:
            parser.error(f"{options.bundle} has no budgets; export with --budgets 0.1,0.2,0.4 and --calibration-data")
        governor = Governor([point.budget for point in net.budgets], options.target_ms)
        net.set_budget(governor.budget)
        frames_at: Counter[float] = Counter()
        late = right = 0
        computed = 0.0
        for frame in range(options.frames):
            index = frame % len(data)
            start = time.perf_counter()
            result = net(data.images[index : index + 1])
            if options.slow_down > 1.0 and options.frames // 3 <= frame < 2 * options.frames // 3:
                spin_until(start + options.slow_down * (time.perf_counter() - start))
            latency_ms = 1e3 * (time.perf_counter() - start)
            frames_at[governor.budget] += 1
            late += latency_ms > options.target_ms
            right += int(result.classes[0]) == int(data.labels[index])
            computed += float(result.computation_percentage[0])
            if governor.observe(latency_ms):
                net.set_budget(governor.budget)
                print(f"frame {frame}: budget {governor.budget:g}")
    print(f"{options.frames} frames, {100 * late / options.frames:.1f} % later than {options.target_ms:g} ms")
    print(f"top-1 {100 * right / options.frames:.2f} %, computation {computed / options.frames:.1f} %")
    print("frames by budget: " + ", ".join(f"{budget:g}: {frames_at[budget]}" for budget in sorted(frames_at)))


def spin_until(moment: float) -> None:
    """Waits without sleeping, which would take longer than a frame."""
    while time.perf_counter() < moment:
        pass


if __name__ == "__main__":
    try:
        main()
    except DfsDeployError as error:
        sys.exit(f"error: {error}")
