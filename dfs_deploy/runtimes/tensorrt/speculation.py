"""Guessing the gate's next decisions from the paths seen so far, so that the device need not wait for the gate.

Few paths are hot: under the path so far, the option that most inputs took is often the next. A guess changes when work
is enqueued and nothing else: what a wrong guess wrote is never read.
"""

from __future__ import annotations

MOST_PREFIXES = 4096
"""Beginnings of paths that are counted; when there are more, the rare ones are forgotten."""


class PathCounts:
    """Counts which option followed each beginning of a path.

    Args:
        options: how many there are.

    Attributes:
        guesses: decisions that were guessed, and compared with the gate's.
        hits: guesses that were right.
    """

    def __init__(self, options: int) -> None:
        self._options = options
        self._counts: dict[bytes, list[int]] = {}
        self.guesses = 0
        self.hits = 0

    def guess(self, beginning: bytes) -> int | None:
        """The option that more than half of the paths took after this beginning, or ``None``."""
        counts = self._counts.get(beginning)
        if counts is None:
            return None
        most = max(counts)
        return counts.index(most) if 2 * most > sum(counts) else None

    def compare(self, guess: int, decision: int) -> bool:
        """Counts a guess; says whether it was right."""
        self.guesses += 1
        self.hits += guess == decision
        return guess == decision

    def observe(self, path: bytes) -> None:
        """Counts a whole path, an option index a byte."""
        for i, option in enumerate(path):
            counts = self._counts.get(path[:i])
            if counts is None:
                if len(self._counts) >= MOST_PREFIXES:
                    self._forget()
                counts = self._counts.setdefault(path[:i], [0] * self._options)
            counts[option] += 1

    def _forget(self) -> None:
        """Halves all counts and drops those that come to nothing; all, where that makes no room."""
        halved = {beginning: [count // 2 for count in counts] for beginning, counts in self._counts.items()}
        kept = {beginning: counts for beginning, counts in halved.items() if any(counts)}
        self._counts = kept if len(kept) <= MOST_PREFIXES // 2 else {}
