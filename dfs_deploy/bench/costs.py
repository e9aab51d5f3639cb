"""Times every option of every block, for training that aims at this device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench.candidates import even_path
from dfs_deploy.bench.clock import median_interval
from dfs_deploy.bench.devices import RUNTIME_OF
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.bundle import Bundle
from dfs_deploy.costs import SCHEMA_VERSION, LatencyTable, OptionCost
from dfs_deploy.errors import CheckFailedError, UsageError
from dfs_deploy.options import Precision
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.thresholds import MAX_UNCERTAINTY

_ROUNDS = 7
_MOST_ROUNDS = 4 * _ROUNDS
_REPEATS = 31
_UNMEASURED = 5

Key = tuple[int, str]
"""Index of a block and name of an option."""


def measure_costs(
    bundle: Bundle,
    threads: int | None = None,
    plan: bool = True,
    progress: Progress = silent,
    prepared: bool = True,
    device: str = "cpu",
    tolerance: float | None = None,
    cache_dir: str | Path | None = None,
) -> LatencyTable:
    """Times the engine that runs for each option of each block on a device, and the gate.

    An engine is timed at batch 1 as it runs in a network: in turn with the others on the path that takes its option at
    every block that may, so that its features arrive in the layout in which that option leaves them, and its weights
    from the cache that they would be in. All paths are timed in several rounds, and an entry is the median of its
    rounds: a change of the machine meets them all. There are more rounds, up to four times
    as many, while what an option costs is not known to ±5 % of the dearest one.

    Args:
        bundle: bundle with a gate, and engines for the device's runtime.
        threads: threads that one engine may use; ``None`` for one, and on a device whose runtime has none.
        plan: whether an engine choice measured here decides which engine runs for an option.
        prepared: whether engines prepared for this machine run.
        progress: progress of the measuring.
        device: device that the engines are to run on; check it with
            ``check_device`` first.
        tolerance: uncertainty of an option's cost, as a share of the dearest one's, beyond which the table says
            nothing; ``None`` for 5 %.
        cache_dir: folder for engines that are prepared; ``None`` for the usual one.

    Raises:
        UsageError: the bundle has a static policy, which leaves one option per block.
        CheckFailedError: the rounds differ by so much that the table would say nothing.
    """
    if bundle.manifest.policy is not None:
        raise UsageError(f"{bundle.path} has a static policy, so one option per block; measure a bundle with a gate")
    name = RUNTIME_OF[device]
    if name == "onnxruntime":
        threads = threads or 1
    with Runtime(bundle, name, threads=threads, plan=plan, prepared=prepared, cache_dir=cache_dir) as runtime:
        rounds, steps = _rounds(runtime, name, progress)
        substituted = {
            (block, substitution.option): substitution.served_by
            for substitution in runtime.substitutions
            for block in substitution.blocks
        }
        facts = runtime.description
    doubt = hardly_known(rounds, tolerance)
    if doubt is not None:
        raise CheckFailedError(f"the costs are INVALID: {doubt}; stop what else runs here, and measure again")
    entries = []
    for block in bundle.manifest.runtimes[name].blocks:
        for option in bundle.architecture.blocks[block.index].choices(bundle.options):
            key = (block.index, option.name)
            precision: Precision | None = None
            if key in rounds:
                own = "fp32" if option.skips else block.options[option.name][0].precision
                precision = cast(Precision, substituted.get(key, own))
            engine_us = float(np.median(rounds[key])) if key in rounds else 0.0
            entries.append(OptionCost(block=block.index, option=option.name, engine_us=engine_us, precision=precision))
    machine = describe_machine()
    return LatencyTable(
        schema_version=SCHEMA_VERSION,
        kind="dfs-deploy latency table",
        bundle=bundle.digest,
        machine=f"{facts.get('device', machine.cpu)}, {machine.system}",
        runtime=f"{facts['runtime']} {facts['version']}",
        threads=threads or 1,
        image_shape=bundle.architecture.image_shape,
        block_shapes=tuple(block.out_shape for block in bundle.architecture.blocks),
        gate_us=float(np.median(steps)) if steps else 0.0,
        entries=entries,
    )


def _rounds(runtime: Runtime, name: str, progress: Progress) -> tuple[dict[Key, list[float]], list[float]]:
    """Times every engine and every gate step, round by round, in microseconds.

    A function of its own, so that no call outlives its runtime: on a device an engine has to be freed first.
    """
    bundle = runtime.bundle
    chains: list[tuple[Sequence[Callable[[], object]], dict[Key, int]]] = []
    made = bundle.manifest.runtimes[name].blocks
    for position, option in enumerate(bundle.options):
        path = even_path(bundle.architecture, bundle.options, position)
        chosen = [bundle.options[index] for index in path]
        runs = [(b, o) for b, o in zip(made, chosen, strict=True) if not o.skips or b.skip is not None]
        # The stem comes before the blocks in a chain, and the head after them.
        places = {(block.index, taken.name): i for i, (block, taken) in enumerate(runs, start=1) if taken == option}
        chains.append((runtime.engine_calls(path), places))
    gates = runtime.gate_calls()
    rounds: dict[Key, list[float]] = {key: [] for _, places in chains for key in places}
    steps: list[float] = []
    for done in range(_MOST_ROUNDS):
        if done >= _ROUNDS and hardly_known(rounds) is None:
            break
        for calls, places in chains:
            medians = chain_medians_us(calls)
            for key, place in places.items():
                rounds[key].append(medians[place])
        steps += chain_medians_us(gates)
        progress("measuring costs", min(1.0, (done + 1) / _ROUNDS))
    return rounds, steps


def chain_medians_us(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median time of each call of a chain, in microseconds: run in order, as an image does, so that caches are real."""
    clock = time.perf_counter_ns
    taken = np.zeros((_UNMEASURED + _REPEATS, len(calls)))
    for row in taken:
        for place, call in enumerate(calls):
            begin = clock()
            call()
            row[place] = clock() - begin
    medians: list[float] = (np.median(taken[_UNMEASURED:], axis=0) / 1e3).tolist() if calls else []
    return medians


def hardly_known(rounds: Mapping[Key, Sequence[float]], tolerance: float | None = None) -> str | None:
    """Looks for an option whose time, beside that of the dearest one in the same round, is not known well enough.

    Training aims by that ratio, summed over the blocks: a machine that is slower in one round is slower for
    both. It counts in shares of the dearest option: what hardly costs anything need not be known as well.

    Args:
        rounds: microseconds of each round, by block and option; at least six rounds.
        tolerance: greatest uncertainty, as a share of the dearest option's time; ``None`` for 5 %.

    Returns:
        Which option, how well it is known, and what was expected; ``None`` if all is known well enough.
    """
    most = MAX_UNCERTAINTY if tolerance is None else tolerance
    by_option: dict[str, NDArray[np.float64]] = {}
    for (_, option), taken in rounds.items():
        by_option[option] = by_option.get(option, 0.0) + np.asarray(taken, np.float64)
    dearest = max(by_option, key=lambda name: float(np.median(by_option[name])), default=None)
    if dearest is None:
        return None
    for option, total in by_option.items():
        known = median_interval(total / by_option[dearest])
        spread = 0.0 if known is None else (known.high - known.low) / 2
        if spread > most:
            return (
                f"the time of option {option} is known only to ±{100 * spread:.1f} % of that of option {dearest},"
                f" expected ±{100 * most:.0f} % or better"
            )
    return None
