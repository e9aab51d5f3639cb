"""The progress callback: one type for all long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Callback of long work: the stage, in a few words, and the share of the stage that is done, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """The callback that shows nothing."""
