"""The verb ``bench``: is the dynamic network worth it here, or is a static network the better choice?"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from dfs_deploy.bench.baseline import check_baseline, check_conditions, compare_with_baseline, load_baseline
from dfs_deploy.bench.baseline import save_baseline as write_baseline
from dfs_deploy.bench.candidates import MAX_INPUTS, check_comparable, draw_inputs, main_first
from dfs_deploy.bench.costs import measure_costs
from dfs_deploy.bench.devices import DEVICES, RUNTIME_OF, check_device
from dfs_deploy.bench.machine import describe_machine
from dfs_deploy.bench.measure import measure
from dfs_deploy.bench.result import SCHEMA_VERSION, BenchedBundle, BenchResult, Setup
from dfs_deploy.bundle import Bundle, open_bundles
from dfs_deploy.bundle.cache import Cache
from dfs_deploy.costs import save_costs as write_costs
from dfs_deploy.data import AnyImages, open_dataset
from dfs_deploy.errors import UsageError
from dfs_deploy.io.files import check_files_writable, write_whole
from dfs_deploy.options import Budget
from dfs_deploy.progress import Progress, silent
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.onnxruntime.engine_choice import choice_file, choice_key, measure_choice
from dfs_deploy.runtimes.onnxruntime.engine_choice import save_choice as write_plan
from dfs_deploy.runtimes.onnxruntime.prepared import PLAIN, prepare_engines
from dfs_deploy.thresholds import NOISE_BAND, VERDICT_MAX_TOP1_DROP

_LOG = logging.getLogger(__name__)

EXTENSION = 4
"""How many times as long as asked for a run may become, to know what its verdict reads."""


def bench(
    bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
    data: AnyImages | str | Path | None = None,
    *,
    device: str = "cpu",
    against: Bundle | str | Path | Sequence[Bundle | str | Path] = (),
    batch: int = 1,
    threads: int | None = None,
    plan: bool = True,
    prepared: bool = True,
    budget: Budget = None,
    all_budgets: bool = False,
    forced: bool = False,
    samples: int = MAX_INPUTS,
    labelled: bool = False,
    seed: int = 0,
    min_seconds: float = 3.0,
    max_seconds: float | None = None,
    min_iterations: int = 200,
    warm_up_seconds: float = 0.2,
    max_top1_drop: float = VERDICT_MAX_TOP1_DROP,
    start_ups: int = 3,
    energy_seconds: float = 3.0,
    compare: BenchResult | str | Path | None = None,
    noise_band: float = NOISE_BAND,
    save_baseline: str | Path | None = None,
    save_plan: bool = False,
    save_costs: str | Path | None = None,
    open_runtime: Callable[..., Runtime] = Runtime,
    progress: Progress = silent,
) -> BenchResult:
    """Times dynamic and static networks on the same inputs, round by round, and says what to ship.

    The run is extended, to twice and then four times its length, while what the verdict reads is not known. If it is
    INVALID (``valid`` of the result), nothing is kept: neither baseline nor engine choice nor latency table.

    Args:
        bundle: bundle with engines for the device's runtime, or several, dynamic and static ones. The first that has a
            gate is the case ``dfs``, and the others are cases with their names, as in ``static-int8@plain``.
        data: labelled images that inputs are drawn from, in a seeded order; ``None`` for the shipped digits if the
            bundle was made for them, and else for the images that the bundle carries.
        device: ``cpu``, ``cuda`` or ``jetson``.
        against: further bundles to compare with, as if they were named last in ``bundle``.
        batch: images per call.
        threads: threads that one engine may use; ``None`` for one, and on a device whose runtime has none.
        plan: whether to use the engine choice measured on this machine, if there is one.
        prepared: whether to run engines prepared for this machine.
        budget: computation that the case ``dfs`` is to hold, see ``Runtime.set_budget``.
        all_budgets: whether to time dynamic networks at every budget that was calibrated, too, in the same rounds.
        forced: whether to time forced paths and their traces as well, in which none to all of the blocks run
            that may be skipped.
        samples: most images that are drawn from the data; more make accuracies better known.
        labelled: whether images without labels are refused, since accuracies are needed.
        seed: seed of the order of inputs.
        min_seconds: measured seconds per case, on average.
        max_seconds: the same, at most, if the run has to be extended; ``None`` for four times ``min_seconds``.
        min_iterations: calls of a case, at least.
        warm_up_seconds: seconds before measuring.
        max_top1_drop: share of right answers that the verdict lets a case lose against the most accurate one.
        start_ups: processes that are started per case, to time a start and see its memory; 0 for none.
        energy_seconds: seconds per case to measure energy in, after the timing; 0 for not at all.
        compare: earlier bench, or its file, to compare this one with; see ``comparison`` of the result.
        noise_band: share by which a ratio may rise in that comparison.
        save_baseline: file to keep this run in, to compare later ones with.
        save_plan: whether to measure which engines are fastest here first, and to keep that choice.
        save_costs: file for a table of what each option costs at each block here, for training.
        open_runtime: function that opens the dynamic network, called as ``Runtime`` is.
        progress: progress of the run.

    Raises:
        UsageError: a number that is too small, NaN or infinite; no inputs, or fewer than one batch; paths cannot be
            forced, or none of them skips; a network to compare with does not fit; threads on a device whose runtime
            has none; a budget that was not calibrated; a file to keep something in that cannot be written.
        EnvironmentLacksError: this machine is not the device.
        ArtefactError: the earlier bench is INVALID or of ratios hardly known, or measured something else.
        CheckFailedError: times are so unsteady that the latency table would say nothing.
    """
    _check_numbers(1, batch=batch, threads=threads, min_iterations=min_iterations, samples=samples)
    _check_numbers(0, min_seconds=min_seconds, max_seconds=max_seconds, warm_up_seconds=warm_up_seconds)
    _check_numbers(0, start_ups=start_ups, energy_seconds=energy_seconds, seed=seed)
    threads = _checked_threads(device, threads, save_plan)
    if max_seconds is not None and max_seconds < min_seconds:
        raise UsageError(f"--max-seconds {max_seconds:g}, expected at least the {min_seconds:g} of --min-seconds")
    if not 0.0 <= max_top1_drop <= 1.0:
        raise UsageError(f"--max-top1-drop {max_top1_drop:g}, expected a share, 0 to 1; 0.01 is one point")
    if not 0.0 <= noise_band <= 1.0:
        raise UsageError(f"--noise-band {noise_band:g}, expected a share, 0 to 1; 0.05 is 5 %")
    check_device(device)
    check_files_writable(*(None if file is None else Path(file) for file in (save_baseline, save_costs)))
    earlier = load_baseline(Path(compare)) if isinstance(compare, str | Path) else compare
    if isinstance(compare, BenchResult):
        check_baseline(compare)
    opened = [*open_bundles(bundle), *open_bundles(against)]
    if not opened:
        raise UsageError("no bundle, expected at least one; name the bundles to time")
    bundle, others = main_first(opened)
    check_comparable(bundle, others)
    if all_budgets and not any(each.manifest.budgets for each in opened):
        held = next((each for each in opened if each.manifest.accuracy_budget is not None), None)
        seen = (
            f"{bundle.path} was calibrated for no budget"
            if held is None
            else f"{held.path} has only an accuracy budget, its default"
        )
        raise UsageError(f"{seen}; export with --budgets, or leave --all-budgets out")
    if isinstance(data, str | Path):
        data = open_dataset(Path(data), size=bundle.input.geometry)
    if data is not None:
        data = data.labelled_for(bundle.architecture.classes, bundle.input.class_names)
    inputs = draw_inputs(bundle, data, seed, samples)
    if labelled and inputs.labels is None:
        raise UsageError(f"no labels: {inputs.name}; give labelled images with --data")
    count = len(inputs.images) // batch * batch
    if not count:
        raise UsageError(f"{len(inputs.images)} images, expected at least one batch of {batch}; give more with --data")
    setup = Setup(
        schema_version=SCHEMA_VERSION,
        bundle=_benched(bundle),
        against=tuple(map(_benched, others)),
        device=device,
        threads=threads,
        seed=seed,
        budget=budget,
        data=inputs.name,
        inputs=count,
        notes=inputs.notes,
        machine=describe_machine(),
    )
    if earlier is not None:
        check_conditions(earlier, setup, batch)
    with ExitStack() as undo:
        kept: list[Path] = []
        if save_plan:
            kept.append(_replace_choice(bundle, threads or 1, prepared, undo, progress))
        costs = None
        if save_costs is not None:
            costs = measure_costs(bundle, threads, plan, progress, prepared, device)
            kept.append(Path(save_costs))
        result = measure(
            setup,
            bundle,
            others,
            inputs,
            batch=batch,
            plan=plan,
            prepared=prepared,
            all_budgets=all_budgets,
            forced=forced,
            min_s=min_seconds,
            max_s=EXTENSION * min_seconds if max_seconds is None else max_seconds,
            min_iterations=min_iterations,
            warm_up_s=warm_up_seconds,
            steady=save_baseline is not None or earlier is not None,
            max_top1_drop=max_top1_drop,
            start_ups=start_ups,
            energy_s=energy_seconds,
            costs=costs,
            open_runtime=open_runtime,
            progress=progress,
        )
        if earlier is not None:
            result = replace(result, comparison=compare_with_baseline(result, earlier, noise_band))
        if result.valid:
            undo.pop_all()
            if costs is not None and save_costs is not None:
                write_costs(save_costs, costs)
            if save_baseline is not None:
                write_baseline(result, Path(save_baseline))
                kept.append(Path(save_baseline))
            result = replace(result, kept=tuple(map(str, kept)))
            for file in result.kept:
                _LOG.info("kept %s", file)
        elif kept or save_baseline is not None:
            _LOG.info("nothing was kept, since the run is INVALID: %s", result.problems[0].what)
    _LOG.info("benched %s on %s: %s", bundle.path, device, result.verdict.words)
    return result


def _check_numbers(least: int, **values: float | None) -> None:
    """Refuses numbers below ``least``, NaN and infinity; ``None`` stands for a default."""
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"{name.replace('_', ' ')} {value:g}, expected a number from {least} on")


def _checked_threads(device: str, threads: int | None, save_plan: bool) -> int | None:
    """Threads of one engine on a device; ``None`` if its runtime has none."""
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}, expected {', '.join(DEVICES)}")
    if RUNTIME_OF[device] == "onnxruntime":
        return 1 if threads is None else threads
    if threads is not None:
        raise UsageError(f"{threads} threads on {device}, whose runtime has none; leave threads out")
    if save_plan:
        raise UsageError(f"an engine choice on {device}, whose runtime makes its own; leave it out")
    return None


def _replace_choice(bundle: Bundle, threads: int, prepared: bool, undo: ExitStack, progress: Progress) -> Path:
    """Measures an engine choice and puts it in place; ``undo`` puts back what was there before.

    Returns:
        The file of the choice.
    """
    cache = Cache(bundle)
    engines = prepare_engines(bundle, cache=cache) if prepared else PLAIN
    before = cache.read(choice_file(choice_key(bundle, threads, engines.channel_block)))
    progress("measuring engines", 0.0)
    file = write_plan(bundle, measure_choice(bundle, threads, progress, engines), cache)
    if before is None:
        undo.callback(file.unlink, missing_ok=True)
    else:
        undo.callback(write_whole, file, before)
    return file


def _benched(bundle: Bundle) -> BenchedBundle:
    return BenchedBundle(
        name=bundle.name,
        digest=bundle.digest,
        checkpoint=bundle.manifest.source.sha256,
        architecture=bundle.architecture.name,
        options=bundle.options.names,
        accuracy_budget=None if (kept := bundle.manifest.accuracy_budget) is None else kept.max_top1_drop,
    )
