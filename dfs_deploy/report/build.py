"""The verb ``report``: runs bundles, times them, compares their engines, and writes the page."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dfs_deploy
from dfs_deploy.bench.candidates import Inputs, check_comparable, draw_inputs, main_first
from dfs_deploy.bench.result import BUDGET, DYNAMIC, POLICY, RIVAL, STATIC, BenchResult, load_bench
from dfs_deploy.bench.run import bench as run_bench
from dfs_deploy.bundle import Bundle, open_bundles
from dfs_deploy.data import AnyImages, open_dataset
from dfs_deploy.errors import BundleError, DataError, UsageError
from dfs_deploy.io.files import write_whole
from dfs_deploy.progress import Progress, silent
from dfs_deploy.report.data import BundleReport, Kind, Outcome, Point, Provenance, Report
from dfs_deploy.report.engines import engine_figures
from dfs_deploy.report.frontier_figure import static_front
from dfs_deploy.report.paths import decisions, hot_paths, path_tree, pick_examples
from dfs_deploy.runtimes import Result, Runtime
from dfs_deploy.suspicion import suspicions
from dfs_deploy.system.libraries import required

_BATCH = 128
_PAGES = (".html", ".htm")
_LOG = logging.getLogger(__name__)

AnyBundle = str | Path | Bundle
AnyData = str | Path | AnyImages


def report(
    bundles: AnyBundle | Sequence[AnyBundle],
    *,
    data: AnyData | None = None,
    html: str | Path | None = None,
    bench: str | Path | BenchResult | Sequence[str | Path | BenchResult] = (),
    against: AnyBundle | Sequence[AnyBundle] = (),
    samples: int | None = 1024,
    examples: int = 6,
    threads: int = 1,
    plan: bool = True,
    prepared: bool = True,
    seed: int = 0,
    min_seconds: float = 2.0,
    min_iterations: int = 200,
    progress: Progress = silent,
) -> Report:
    """Measures what bundles do here: accuracy, latency, decisions of the gate, time and error of each engine.

    Args:
        bundles: bundles with engines for ONNX Runtime, or their paths. Several are timed together, in one run.
        data: labelled images, or their path; ``None`` for the shipped digits if a bundle was made for them,
            and else for the images that it carries.
        html: page to write, one file that needs no network; ``None`` for none.
        bench: results of ``dfs_deploy.bench``, or files of ``bench --json``, to use instead of timing now. One may be
            of several bundles.
        against: bundles that a bench made now compares with, and that have no part of their own in the report.
        samples: number of images to draw from the data; ``None`` for all.
        examples: number of inputs to show at each end; 0 keeps pictures out of the report.
        threads: number of threads that one engine may use.
        plan: whether to use the engine choice measured on this machine, if there is one.
        prepared: whether to run engines prepared for this machine.
        seed: seed of every draw.
        min_seconds: measured seconds per case of a bench made now, on average.
        min_iterations: least number of calls per case of a bench made now.
        progress: callback of the work.

    Returns:
        The report; ``as_json()`` gives it as plain values.

    Raises:
        UsageError: no bundle; no inputs; a page that is not named ``.html``; a network to compare with, or a bench,
            that does not fit.
        BundleError: a bundle cannot be read, or has no engines for ONNX Runtime.
        DataError: the data cannot be read, or a bench is of another bundle.
        MissingExtraError: the page needs an extra that is not installed.
    """
    if html is not None:
        _check_page(Path(html))
    opened, rivals = open_bundles(bundles), open_bundles(against)
    if not opened:
        raise UsageError("no bundle, expected at least one; name the bundles that the report is about")
    for bundle in opened:
        if "onnxruntime" not in bundle.manifest.runtimes:
            raise BundleError(f"{bundle.path} has no engines for onnxruntime; export with --runtime onnxruntime")
    matched = match_benches(
        [bundle.digest for bundle in opened], [bench] if isinstance(bench, str | Path | BenchResult) else bench
    )
    drawn = [_opened_data(bundle, data) for bundle in opened]
    how = _How(samples, examples, threads, plan, prepared, seed)
    benches = [found for found in matched if found is not None]
    if missing := [index for index, found in enumerate(matched) if found is None]:
        timed = [opened[index] for index in missing]
        main, others = main_first([*timed, *rivals])
        check_comparable(main, others)
        made = run_bench(
            timed,
            drawn[missing[0]],
            against=rivals,
            all_budgets=any(each.manifest.budgets for each in (main, *others)),
            threads=threads,
            plan=plan,
            prepared=prepared,
            seed=seed,
            min_seconds=min_seconds,
            min_iterations=min_iterations,
            start_ups=0,
            energy_seconds=0.0,
            progress=progress,
        )
        benches = [made if found is None else found for found in matched]
    names = [bundle.name for bundle in opened]
    shown = {bundle.digest for bundle in opened}
    reports = []
    for bundle, dataset, found in zip(opened, drawn, benches, strict=True):
        name = bundle.name if names.count(bundle.name) == 1 else f"{bundle.name} ({bundle.digest[:8]})"

        def stage(what: str, share: float, name: str = name) -> None:
            progress(f"{name}: {what}", share)

        reports.append(_measured(bundle, name, dataset, found, shown, how, stage))
    together = len(opened) > 1 and all(found is benches[0] for found in benches)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    whole = Report(dfs_deploy.__version__, now, tuple(reports), together)
    if html is not None:
        from dfs_deploy.report.page import render_page

        write_whole(Path(html), render_page(whole).encode())
        _LOG.info("wrote %s", html)
    return whole


@dataclass(frozen=True)
class _How:
    """How bundles are measured; see ``report``."""

    samples: int | None
    examples: int
    threads: int
    plan: bool
    prepared: bool
    seed: int


def _check_page(html: Path) -> None:
    """Refuses a page that cannot be made, before anything is measured for it."""
    if html.suffix.lower() not in _PAGES:
        raise UsageError(
            f"{html} ends in {html.suffix or 'nothing'!r}, expected {' or '.join(_PAGES)}: a page is HTML, and a"
            " browser prints it as PDF; name it so"
        )
    with required():
        import dfs_deploy.report.page  # noqa: F401


def _opened_data(bundle: Bundle, data: AnyData | None) -> AnyImages | None:
    if isinstance(data, (str, Path)):
        data = open_dataset(data, size=bundle.input.geometry)
    return None if data is None else data.labelled_for(bundle.architecture.classes, bundle.input.class_names)


def match_benches(
    digests: Sequence[str], benches: Sequence[str | Path | BenchResult]
) -> tuple[BenchResult | None, ...]:
    """Finds the bench of each bundle, by its digest.

    Args:
        digests: digests of the bundles.
        benches: results, or their files; fewer than bundles if some are to be timed now.

    Returns:
        The bench of each bundle, or ``None``: one that runs it, or else one that compares another bundle with it.

    Raises:
        DataError: a bench is of another bundle.
        UsageError: two are of the same bundle.
    """
    found: list[BenchResult | None] = [None] * len(digests)
    results = [given if isinstance(given, BenchResult) else load_bench(Path(given)) for given in benches]
    for given, result in zip(benches, results, strict=True):
        label = result.bundle.name if isinstance(given, BenchResult) else str(given)
        if result.bundle.digest not in digests:
            raise DataError(
                f"{label} is of a bundle with digest {result.bundle.digest[:12]}, expected"
                f" {' or '.join(digest[:12] for digest in digests)}; run dfs-deploy bench again"
            )
        index = digests.index(result.bundle.digest)
        if found[index] is not None:
            raise UsageError(f"{label} is of the same bundle as a bench before it; give one per bundle")
        found[index] = result
    beside = {other.digest: result for result in results for other in result.against}
    return tuple(beside.get(digest) if own is None else own for digest, own in zip(digests, found, strict=True))


def _measured(
    bundle: Bundle,
    name: str,
    data: AnyImages | None,
    bench: BenchResult,
    shown: Collection[str],
    how: _How,
    progress: Progress,
) -> BundleReport:
    inputs = draw_inputs(bundle, data, how.seed, how.samples)
    groups = [block.group for block in bundle.architecture.blocks]
    with Runtime(bundle, threads=how.threads, plan=how.plan, prepared=how.prepared) as runtime:
        result = _run(runtime, inputs.images, progress)
        substitutions, running = runtime.substitutions, runtime.description
    engines = engine_figures(
        bundle,
        substitutions,
        bundle.input.normalize(inputs.images),
        result.path,
        groups,
        how.threads,
        how.prepared,
        progress,
    )
    right = None if inputs.labels is None else result.classes == inputs.labels
    rows, hottest = hot_paths(result.path, right, bundle.options, weights=result.weights)
    return BundleReport(
        facts=_provenance(bundle, name),
        options=tuple(bundle.manifest.options),
        substitutions=substitutions,
        outcome=Outcome(
            data=inputs.name,
            inputs=len(inputs.images),
            labelled=right is not None,
            top1=None if right is None else float(right.mean()),
            computation_percentage=float(result.computation_percentage.mean(dtype=np.float64)),
            distinct_paths=len(np.unique(result.path, axis=0)),
        ),
        notes=tuple(_notes(bundle, inputs, result, bench)),
        bench=bench,
        bench_differs=tuple(_differences(bench.runtime, running)) if bench.bundle.digest == bundle.digest else (),
        frontier=tuple(_frontier(name, bundle.digest, bench, shown)),
        decisions=decisions(result.path, bundle.options, groups, bundle.architecture.allowed(bundle.options)),
        paths=hottest,
        paths_listed=len(hottest),
        paths_share=sum(path.share for path in hottest),
        tree=path_tree(rows, [path.inputs for path in hottest], len(inputs.images), bundle.options, groups),
        engines=engines,
        budgets=tuple(bundle.manifest.budgets),
        examples=pick_examples(bundle, inputs.images, inputs.labels, result, how.examples),
    )


def _run(runtime: Runtime, images: NDArray[np.uint8], progress: Progress) -> Result:
    parts = []
    for start in range(0, len(images), _BATCH):
        progress("running", start / len(images))
        parts.append(runtime(images[start : start + _BATCH]))
    progress("running", 1.0)
    logits, path = np.concatenate([part.logits for part in parts]), np.concatenate([part.path for part in parts])
    return Result(logits, path, parts[0].costs, parts[0].weights)


def _provenance(bundle: Bundle, name: str) -> Provenance:
    manifest, calibration = bundle.manifest, bundle.manifest.calibration
    return Provenance(
        name=name,
        digest=bundle.digest,
        bytes=bundle.size,
        checkpoint=manifest.source.file,
        checkpoint_sha256=manifest.source.sha256,
        architecture=bundle.architecture.name,
        gated_blocks=len(bundle.architecture.decided(bundle.options)),
        classes=bundle.architecture.classes,
        targets=tuple(manifest.targets),
        calibration_method=None if calibration is None else calibration.method,
        calibration_data=None if calibration is None else calibration.data,
        calibration_samples=None if calibration is None else calibration.samples,
    )


def _notes(bundle: Bundle, inputs: Inputs, result: Result, bench: BenchResult) -> Iterator[str]:
    """What weakens the figures, one line each, unless the bench says it beside its verdict."""
    said = bench.verdict.caveats
    another = bundle.cpu_mismatch
    yield from inputs.notes
    for line in suspicions(inputs.labels, result.classes, bundle.architecture.classes, bundle.input.class_names):
        if f"{DYNAMIC}: {line}" not in said:
            yield line
    if another is not None and not any(another in line for line in said):
        yield f"{bundle.name} was {another}"


def _differences(timed: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    """What ran when the bench was made and runs otherwise now."""
    for name in ("version", "gate", "plan", "layout"):
        then, now = timed.get(name), here.get(name)
        if then and then != now:
            yield f"{name}: {then} in the bench, {now} now"


def _frontier(name: str, digest: str, bench: BenchResult, shown: Collection[str]) -> Iterator[Point]:
    """A bundle's points of the frontier; forced paths answer another question, and are left out.

    Args:
        name: name of the bundle in the report.
        digest: digest of the bundle.
        bench: run that it was timed in.
        shown: digests of all bundles of the report; the points of others are those of the bundle that was run.
    """
    own = bench.dynamic
    front = static_front((case.latency_ms.p50, case.top1) for case in bench.statics if case.top1 is not None)
    # First the network at its own operating point, whose latency stands for the bundle: the dynamic one, or the
    # static policy.
    first = (DYNAMIC, f"{STATIC}{POLICY}")
    for case in sorted(bench.compared, key=lambda case: case.name.partition(RIVAL)[0] not in first):
        owner = bench.owner_of(case)
        if (owner if owner in shown else bench.bundle.digest) != digest:
            continue
        kind: Kind = "static" if case.static else "budget" if case.name.startswith(BUDGET) else "dynamic"
        yield Point(
            bundle=name,
            name=case.name,
            kind=kind,
            p50_ms=case.latency_ms.p50,
            p95_ms=case.latency_ms.p95,
            top1=case.top1,
            computation_percentage=case.computation_percentage,
            latency_ratio=case.latency_ms.p50 / own.latency_ms.p50,
            top1_change=None if case.top1 is None or own.top1 is None else case.top1 - own.top1,
            front=case.static and (case.latency_ms.p50, case.top1) in front,
        )
