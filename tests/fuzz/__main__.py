"""Runs the fuzzing suite: ``python -m tests.fuzz [READER ...] [--cases N] [--seed S] [--case K]``.

Prints a table of outcomes and, to standard error, each case that ended as none may, with the command that repeats it
alone. The exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from tests.fuzz.corpus import made_corpus
from tests.fuzz.pool import BAD, GOOD, Outcome, run_cases, shuffled
from tests.fuzz.readers import READERS

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "fuzz"


def say(text: str) -> None:
    """Writes a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def row(cells: Sequence[object]) -> str:
    """A row of the table."""
    return f"| {' | '.join(map(str, cells))} |"


class Teller:
    """Writes outcomes of some kinds to standard error as they come, each with the command that repeats it.

    Args:
        reader: its name.
        seed: of the cases.
        kinds: that are told.
    """

    def __init__(self, reader: str, seed: int, kinds: Sequence[str]) -> None:
        self._reader, self._seed, self._kinds = reader, seed, kinds
        self._left = 100

    def __call__(self, outcome: Outcome) -> None:
        if outcome.kind not in self._kinds or not self._left:
            return
        self._left -= 1
        changes = "; ".join(outcome.notes)
        told = f"{outcome.kind}: {self._reader}, from {outcome.seed} ({changes}): {outcome.detail!r}"[:700]
        again = f"make fuzz READER={self._reader} SEED={self._seed} CASE={outcome.case}"
        sys.stderr.write(f"{told}\n    again: {again}\n")
        sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)}; all if none is named")
    parser.add_argument("--cases", type=int, default=10_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone, told in full")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="children at a time")
    parser.add_argument("--show", choices=(*GOOD, *BAD), action="append", default=[], help="tell these outcomes too")
    parser.add_argument("--json", type=Path, help="file for every outcome")
    options = parser.parse_args(arguments)
    for name in options.readers:
        if name not in READERS:
            parser.error(f"no reader {name!r}; expected {', '.join(READERS)}")

    import torch

    torch.set_num_threads(1)
    cases = shuffled(options.cases, options.seed) if options.case is None else [options.case]
    everything: dict[str, list[Outcome]] = {}
    say(row(("reader", "cases", *GOOD, *BAD, "s")))
    say(row(["---"] + ["--:"] * (len(GOOD) + len(BAD) + 2)))
    with made_corpus() as corpus:
        for name in options.readers or READERS:
            begun = time.monotonic()
            reader = READERS[name](corpus)
            gc.collect()
            gc.freeze()  # children that collect garbage then leave the parent's pages shared
            told = Teller(name, options.seed, (*BAD, *options.show, *(GOOD if options.case is not None else ())))
            outcomes = run_cases(reader, options.seed, cases, jobs=options.jobs, keep=KEPT, report=told)
            everything[name] = outcomes
            counts = Counter(outcome.kind for outcome in outcomes)
            shown = [counts[kind] for kind in (*GOOD, *BAD)]
            say(row((name, len(outcomes), *shown, f"{time.monotonic() - begun:.0f}")))
    if options.json is not None:
        plain = {name: [[o.case, o.kind, o.seed, o.notes, o.detail] for o in each] for name, each in everything.items()}
        options.json.write_text(json.dumps(plain, indent=0))
    return 1 if any(outcome.bad for outcomes in everything.values() for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
