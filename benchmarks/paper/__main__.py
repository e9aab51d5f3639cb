"""Trains what the paper's figures and tables show, and draws them.

    python -m benchmarks.paper --data DIR --out DIR                # the full schedule: 64,000 steps per stage
    python -m benchmarks.paper --data DIR --out DIR --scale 0.01 --only fig3,table1
    python -m benchmarks.paper --data DIR --out DIR --dry-run      # the runs with their steps, and nothing else
    python -m benchmarks.paper --out DIR --draw                    # draws again from the logs

The same command goes on where it was stopped: finished runs are left out. docs/paper.md describes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.paper.drawing import write_all
from benchmarks.paper.exhibits import EXHIBITS, Exhibit, chosen
from benchmarks.paper.runs import (
    DATA_NAMES,
    HERE,
    Run,
    Settings,
    blocks_per_group,
    carry_out,
    check_values,
    command_of,
    find_data,
    runs_of,
    state_of,
    train_values,
    unique,
)
from dfs_deploy.errors import DfsDeployError, UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.io.text import first_line

SETTINGS_FILE = "settings.json"
FIGURES = "figures"
NETWORKS = tuple(dict.fromkeys(exhibit.network for exhibit in EXHIBITS))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", type=Path, help="folder with the data sets as they unpack, or as cifar10.npz")
    made.add_argument("--out", type=Path, required=True, help="folder of the runs; figures go to its folder figures")
    made.add_argument("--scale", type=float, default=1.0, help="share of the paper's steps, such as 0.01")
    made.add_argument(
        "--alpha-scale",
        type=float,
        help="factor on the paper's alphas; by default 1 / scale, as fewer steps pull less far",
    )
    made.add_argument("--networks", default=",".join(NETWORKS), help="some of them; resnet38=resnet20 takes a stand-in")
    made.add_argument("--data-sets", default=",".join(DATA_NAMES), help="some of them")
    made.add_argument("--only", help=f"some of {','.join(exhibit.name for exhibit in EXHIBITS)}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value of every recipe; a job's device or threads; repeatable",
    )
    made.add_argument("--dry-run", action="store_true", help="print the runs with their steps only")
    made.add_argument("--draw", action="store_true", help="draw what is finished, and train nothing")
    return made


def main(words: list[str] | None = None) -> int:
    """Runs the command; gives its exit status."""
    given = parser().parse_args(words)
    try:
        return _main(given)
    except DfsDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {first_line(error)}; choose another --out, or make room there", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _main(given: argparse.Namespace) -> int:
    networks = _stand_ins(given.networks)
    only = None if given.only is None else _words("exhibit", given.only, [exhibit.name for exhibit in EXHIBITS])
    data_sets = _words("data set", given.data_sets, list(DATA_NAMES))
    wanted = {exhibit: networks[exhibit.network] for exhibit in chosen(only, list(networks), data_sets)}
    if not wanted:
        raise UsageError("no figure and no table is about these networks and data sets; choose others")
    settings = Settings(given.scale, given.seed, dict(map(_parse_change, given.set)), given.alpha_scale)
    for exhibit, network in wanted.items():
        for run in runs_of(exhibit, network):
            check_values(train_values(run, settings, given.data or Path(run.data_set), given.out))
    _print_plan(wanted, settings, given.out)
    if not given.dry_run and not given.draw:
        if given.data is None:
            raise UsageError("no data, expected --data DIR with the data sets")
        _train_all(wanted, settings, given.data, given.out)
    if not given.dry_run:
        for path in write_all(wanted, given.out, given.out / FIGURES):
            print(path)
    return 0


def _train_all(wanted: dict[Exhibit, str], settings: Settings, data: Path, out: Path) -> None:
    runs = unique([run for exhibit, network in wanted.items() for run in runs_of(exhibit, network)])
    places = {run.data_set: find_data(data, run.data_set) for run in runs}
    _keep_settings(out, settings)
    for number, run in enumerate(runs, start=1):
        values = train_values(run, settings, places[run.data_set], out)
        print(f"[{number}/{len(runs)}] {command_of(values)}", flush=True)
        result = carry_out(values)
        print("  finished before" if result is None else f"  {result}", flush=True)
        if number < len(runs) and result is not None and run.stages != ("gate",):
            write_all(wanted, out, out / FIGURES)


def _keep_settings(out: Path, settings: Settings) -> None:
    """Notes the settings of a new folder; in one that has some, they must be the same."""
    path, own = out / SETTINGS_FILE, {name: value for name, value in settings.values().items() if name not in HERE}
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise UsageError(f"{path} is damaged ({error}); choose another --out") from error
        if before != own:
            raise UsageError(f"{out} was begun with {before}, expected {own}; give the same, or choose another --out")
        return
    write_whole(path, json.dumps(own, indent=1).encode() + b"\n")


def _print_plan(wanted: dict[Exhibit, str], settings: Settings, out: Path) -> None:
    users: dict[str, list[str]] = {}
    every: dict[str, Run] = {}
    for exhibit, network in wanted.items():
        for run in runs_of(exhibit, network):
            every.setdefault(run.name, run)
            users.setdefault(run.name, []).append(exhibit.name)
    total = 0
    for run in every.values():
        steps = {stage: settings.values()[f"{stage}_steps"] for stage in run.stages}
        state = state_of(out / run.name)
        total += 0 if state == "finished" else sum(steps.values())
        spelled = ", ".join(f"{stage} {count:,}" for stage, count in steps.items())
        print(f"{run.name:45} {spelled:18} {state:9} {', '.join(users[run.name])}")
    print(f"{len(every)} runs for {len(wanted)} figures and tables; at most {total:,} steps are left")


def _stand_ins(text: str) -> dict[str, str]:
    """Reads ``resnet38,resnet74=resnet32``: networks of the paper, each with the one that is trained for it."""
    pairs = [
        (name, stand_in or name) for name, _, stand_in in (word.strip().partition("=") for word in text.split(","))
    ]
    _words("network", ",".join(name for name, _ in pairs), list(NETWORKS))
    for _, stand_in in pairs:
        blocks_per_group(stand_in)
    return dict(pairs)


def _words(what: str, text: str, known: list[str]) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise UsageError(f"{what} {unknown[0]!r}, expected some of {', '.join(known)}")
    return words


def _parse_change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r}, expected NAME=VALUE, as in batch=64")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
