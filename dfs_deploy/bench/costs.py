"""Timing every option of every gated block, for training that aims at this device."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from dfs_deploy.bench.clock import median_alone
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.bundle import Bundle
from dfs_deploy.costs import SCHEMA_VERSION, LatencyTable, OptionCost
from dfs_deploy.errors import UsageError
from dfs_deploy.options import Precision
from dfs_deploy.runtimes import Runtime

_ROUNDS = 7
_REPEATS = 31


def measure_costs(
    bundle: Bundle,
    threads: int = 1,
    plan: bool = True,
    progress: Callable[[float], None] | None = None,
    prepared: bool = True,
) -> LatencyTable:
    """Times the engine that serves each option of each gated block here, and the gate.

    An engine is timed by itself at batch 1, on the path that takes its option everywhere, so that its features arrive
    in the form in which that option leaves them. All engines take turns, in several rounds, and an entry is the median
    of its rounds: a change of the machine meets them all.

    Args:
        bundle: with a gate, and engines for ONNX Runtime.
        threads: that one engine may use.
        plan: whether a plan measured here decides which engine serves an option.
        prepared: whether engines prepared for this machine run.
        progress: called with how far it is, 0 to 1.

    Raises:
        UsageError: the bundle has a static policy, hence one option a block.
    """
    if bundle.manifest.policy is not None:
        raise UsageError(f"{bundle.path} has a static policy, hence one option a block; measure a bundle with a gate")
    with Runtime(bundle, threads=threads, plan=plan, prepared=prepared) as runtime:
        calls: dict[tuple[int, str], Callable[[], object]] = {}
        for position, option in enumerate(bundle.options):
            path = np.full(bundle.architecture.gated_blocks, position, np.uint8)
            _, *served, _ = runtime.engine_calls(path)
            runs = [b for b in bundle.manifest.runtimes["onnxruntime"].blocks if not option.skips or b.skip is not None]
            calls.update(
                {(block.index, option.name): call for block, call in zip(runs, served, strict=True)},
            )
        gates = runtime.gate_calls()
        rounds: dict[tuple[int, str], list[float]] = {key: [] for key in calls}
        steps = []
        for turn in range(_ROUNDS):
            for key, call in calls.items():
                rounds[key].append(1e3 * median_alone(call, _REPEATS))
            steps += [1e3 * median_alone(call, _REPEATS) for call in gates]
            if progress is not None:
                progress((turn + 1) / _ROUNDS)
        substituted = {
            (block, substitution.option): substitution.served_by
            for substitution in runtime.substitutions
            for block in substitution.blocks
        }
        facts = runtime.description
    entries = []
    for block in bundle.manifest.runtimes["onnxruntime"].blocks:
        for option in bundle.options:
            key = (block.index, option.name)
            precision: Precision | None = None
            if key in calls:
                own = "fp32" if option.skips else block.options[option.name][0].precision
                precision = cast(Precision, substituted.get(key, own))
            engine_us = float(np.median(rounds[key])) if key in calls else 0.0
            entries.append(OptionCost(block=block.index, option=option.name, engine_us=engine_us, precision=precision))
    machine = describe_machine()
    return LatencyTable(
        schema_version=SCHEMA_VERSION,
        kind="dfs-deploy latency table",
        bundle=bundle.digest,
        machine=f"{machine.cpu}, {machine.system}",
        runtime=f"{facts['runtime']} {facts['version']}",
        threads=threads,
        groups=list(bundle.architecture.groups),
        widths=list(bundle.architecture.widths),
        image_shape=bundle.architecture.image_shape,
        gate_us=float(np.median(steps)) if steps else 0.0,
        entries=entries,
    )
