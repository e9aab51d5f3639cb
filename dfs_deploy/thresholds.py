"""How much may be lost before a check fails or a verdict changes, in one place."""

from __future__ import annotations

from typing import Final

VERIFY_MAX_TOP1_DROP: Final = 0.003
"""Share of right answers that a bundle may lose against its own PyTorch reference: rounding is to cost hardly any."""

VERDICT_MAX_TOP1_DROP: Final = 0.01
"""Share of right answers that a choice between networks may lose against the most accurate of them, for speed."""

TIE: Final = 0.02
"""Ratios of latencies nearer to one than this decide nothing, however well they are known."""

VERIFY_MIN_ROUTE_AGREEMENT: Final = 0.98
"""Share of block decisions in which a bundle must agree with its reference."""

VERIFY_MAX_COMPUTATION_CHANGE: Final = 1.0
"""Points by which a bundle's computation percentage may differ from its reference's."""

MAX_UNCERTAINTY: Final = 0.05
"""Uncertainty of a ratio beyond which it is not known: half of the least difference that a bench is asked to see."""

NOISE_BAND: Final = 0.05
"""Change of a ratio that two benches of the same thing may show (docs/bench.md)."""

MIN_INPUTS: Final = 8
"""Different inputs below which a bench says nothing about the paths that data takes."""

NOISY: Final = 0.025
"""Coefficient of variation above which trtexec warns that times are unstable."""
