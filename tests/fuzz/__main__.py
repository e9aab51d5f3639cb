"""Runs the fuzzing suite: ``python -m tests.fuzz [READER ...] [--cases N] [--seed S] [--case K]``.

Prints a table of outcomes and, for each case that ended as none may, one line that runs it again alone. The exit code
is 1 if there is any.
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
    bad: list[tuple[str, Outcome]] = []
    with made_corpus() as corpus:
        for name in options.readers or READERS:
            begun = time.monotonic()
            reader = READERS[name](corpus)
            gc.collect()
            gc.freeze()  # children that collect garbage then leave the parent's pages shared
            outcomes = run_cases(reader, options.seed, cases, jobs=options.jobs, keep=KEPT)
            everything[name] = outcomes
            counts = Counter(outcome.kind for outcome in outcomes)
            shown = [counts[kind] for kind in (*GOOD, *BAD)]
            say(row((name, len(outcomes), *shown, f"{time.monotonic() - begun:.0f}")))
            bad += [(name, outcome) for outcome in outcomes if outcome.bad or outcome.kind in options.show]
            if options.case is not None:
                say("\n".join(map(repr, outcomes)))
    if options.json is not None:
        told = {
            name: [[o.case, o.kind, o.seed, o.notes, o.detail] for o in outcomes]
            for name, outcomes in everything.items()
        }
        options.json.write_text(json.dumps(told, indent=0))
    for name, outcome in bad[:200]:
        say(f"{outcome.kind}: {name}, from {outcome.seed} ({'; '.join(outcome.notes)}): {outcome.detail!r}"[:700])
        say(f"    again: make fuzz READER={name} SEED={options.seed} CASE={outcome.case}")
    if len(bad) > 200:
        say(f"... and {len(bad) - 200} more")
    return 1 if any(outcome.bad for _, outcome in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
