"""From an opened bundle to the data of its report: runs it, times it, compares its engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from dfs_deploy.bench import run_bench
from dfs_deploy.bench.candidates import BUDGET, DYNAMIC, STATIC
from dfs_deploy.bench.inputs import Inputs
from dfs_deploy.bundle import Bundle
from dfs_deploy.data import Dataset, ImageFolder
from dfs_deploy.errors import BundleError, UsageError
from dfs_deploy.report.bench_file import BenchFigures, RuntimeFacts, bench_figures
from dfs_deploy.report.engines import engine_figures
from dfs_deploy.report.examples import pick_examples
from dfs_deploy.report.results import (
    BudgetPoint,
    BundleFacts,
    BundleReport,
    Kind,
    OptionFacts,
    Outcome,
    Point,
    SubstitutionFacts,
)
from dfs_deploy.report.routes import decisions, hot_paths, path_tree
from dfs_deploy.runtimes import Result, Runtime
from dfs_deploy.suspicion import suspicions
from dfs_deploy.system.target_cpu import made_for_another_cpu

SAMPLES = 1024
EXAMPLES = 6
_BATCH = 128

Progress = Callable[[str, float], None]


def report_bundle(
    bundle: Bundle,
    data: Dataset | ImageFolder | None = None,
    bench: BenchFigures | None = None,
    *,
    against: Sequence[Bundle] = (),
    samples: int | None = SAMPLES,
    examples: int = EXAMPLES,
    threads: int = 1,
    plan: bool = True,
    prepared: bool = True,
    seed: int = 0,
    min_s: float = 2.0,
    min_iterations: int = 200,
    progress: Progress | None = None,
) -> BundleReport:
    """Measures all that a report tells of a bundle.

    Args:
        bundle: with engines for ONNX Runtime.
        data: inputs to run; ``None`` for the images that the bundle carries.
        bench: figures of a bench made before; ``None`` to make one now.
        against: bundles of networks that were trained to be static, which a bench made now compares with as well.
        samples: inputs to draw from the data; ``None`` for all.
        examples: inputs to show at each end; 0 keeps pictures out of the report.
        threads: that one engine may use.
        plan: whether to use the plan measured on this machine, if there is one.
        prepared: whether to run engines prepared for this machine.
        seed: of every draw.
        min_s: of the bench: measured seconds a case, on average.
        min_iterations: of the bench: calls a case, at least.
        progress: called with what is being done and how far it is.

    Raises:
        UsageError: there are no inputs.
        BundleError: the bundle has no engines for ONNX Runtime.
    """
    tell = progress or (lambda what, share: None)
    if "onnxruntime" not in bundle.manifest.runtimes:
        raise BundleError(f"{bundle.path} has no engines for onnxruntime; export with --runtime onnxruntime")
    inputs = _inputs(bundle, data, samples, seed)
    images, labels = inputs.images, inputs.labels
    groups = [block.group for block in bundle.architecture.blocks]
    with Runtime(bundle, threads=threads, plan=plan, prepared=prepared) as runtime:
        here = msgspec.convert(runtime.description, RuntimeFacts)
        result = _run(runtime, images, lambda share: tell(f"{bundle.name}: running", share))
        substitutions = runtime.substitutions
        engines = engine_figures(
            bundle,
            substitutions,
            bundle.input.normalize(images),
            result.path,
            groups,
            threads,
            prepared,
            lambda share: tell(f"{bundle.name}: measuring engines", share),
        )
    if bench is None:
        made = run_bench(
            bundle,
            data,
            against=against,
            budgets=[point.budget for point in bundle.manifest.budgets],
            threads=threads,
            plan=plan,
            prepared=prepared,
            seed=seed,
            min_s=min_s,
            min_iterations=min_iterations,
            progress=lambda what, share: tell(f"{bundle.name}: {what}", share),
        )
        bench = bench_figures(made.as_json())
    right = None if labels is None else result.classes == labels
    rows, hottest = hot_paths(result.path, right, bundle.options)
    budgets = _budgets(bundle)
    return BundleReport(
        facts=_facts(bundle),
        options=tuple(OptionFacts(option.name, option.bits, option.cost) for option in bundle.options),
        substitutions=tuple(
            SubstitutionFacts(s.option, s.wanted, s.served_by, s.reason, len(s.blocks)) for s in substitutions
        ),
        outcome=Outcome(
            data=inputs.name,
            inputs=len(images),
            labelled=labels is not None,
            top1=None if right is None else float(right.mean()),
            computation_percentage=float(result.computation_percentage.mean(dtype=np.float64)),
            distinct_paths=len(np.unique(result.path, axis=0)),
        ),
        notes=tuple(_notes(bundle, inputs, result, bench)),
        bench=bench,
        bench_differs=tuple(_differences(bench.runtime, here)),
        frontier=tuple(_frontier(bundle, bench)),
        decisions=decisions(result.path, bundle.options, groups),
        paths=hottest,
        paths_listed=len(hottest),
        paths_share=sum(path.share for path in hottest),
        tree=path_tree(rows, [path.inputs for path in hottest], len(images), bundle.options, groups),
        engines=engines,
        budgets=budgets,
        examples=pick_examples(bundle, images, labels, result, examples),
    )


def distinct_names(reports: tuple[BundleReport, ...]) -> tuple[BundleReport, ...]:
    """The same reports, bundles of the same name told apart by their digests."""
    names = [report.facts.name for report in reports]

    def named(report: BundleReport) -> BundleReport:
        if names.count(report.facts.name) == 1:
            return report
        name = f"{report.facts.name} ({report.facts.digest[:8]})"
        points = tuple(replace(point, bundle=name) for point in report.frontier)
        return replace(report, facts=replace(report.facts, name=name), frontier=points)

    return tuple(named(report) for report in reports)


def _inputs(bundle: Bundle, data: Dataset | ImageFolder | None, count: int | None, seed: int) -> Inputs:
    if data is not None:
        drawn = data.subset(count, seed).load()
        return Inputs(drawn.images, drawn.labels, drawn.name, drawn.notes)
    carried = bundle.samples()
    if carried is None:
        raise UsageError(f"{bundle.path} carries no images; give some with --data")
    # No labels: they were chosen for different paths, so their top-1 would say nothing about any data.
    return Inputs(carried.images, None, "images carried by the bundle, chosen for different paths")


def _notes(bundle: Bundle, inputs: Inputs, result: Result, bench: BenchFigures) -> Iterator[str]:
    """What weakens the figures, a line each, unless the bench says it beside its verdict."""
    said = bench.verdict.caveats if bench.verdict is not None else []
    another = made_for_another_cpu(bundle.manifest)
    yield from inputs.notes
    for line in suspicions(inputs.labels, result.classes, bundle.architecture.classes, bundle.input.class_names):
        if f"{DYNAMIC}: {line}" not in said:
            yield line
    if another is not None and not any(another in line for line in said):
        yield f"{bundle.name} was {another}"


def _run(runtime: Runtime, images: NDArray[np.uint8], progress: Callable[[float], None]) -> Result:
    parts = []
    for start in range(0, len(images), _BATCH):
        parts.append(runtime(images[start : start + _BATCH]))
        progress(min(1.0, (start + _BATCH) / len(images)))
    logits, path = np.concatenate([part.logits for part in parts]), np.concatenate([part.path for part in parts])
    return Result(logits, path, parts[0].costs)


def _facts(bundle: Bundle) -> BundleFacts:
    manifest, calibration = bundle.manifest, bundle.manifest.calibration
    return BundleFacts(
        name=bundle.name,
        digest=bundle.digest,
        bytes=bundle.size,
        checkpoint=manifest.source.file,
        checkpoint_sha256=manifest.source.sha256,
        architecture=bundle.architecture.name,
        gated_blocks=bundle.architecture.gated_blocks,
        classes=bundle.architecture.classes,
        targets=tuple(manifest.targets),
        calibration_method=None if calibration is None else calibration.method,
        calibration_data=None if calibration is None else calibration.data,
        calibration_samples=None if calibration is None else calibration.samples,
    )


def _differences(timed: RuntimeFacts, here: RuntimeFacts) -> Iterator[str]:
    """What ran when the bench was made and runs otherwise now; what an older file does not tell is passed over."""
    for name in ("version", "gate", "plan", "layout"):
        then, now = getattr(timed, name), getattr(here, name)
        if then and then != now:
            yield f"{name}: {then} in the bench, {now} now"


def _frontier(bundle: Bundle, bench: BenchFigures) -> Iterator[Point]:
    trained = bench.case(DYNAMIC)
    p50, top1 = (None, None) if trained is None else (trained.latency_ms.p50, trained.top1)
    for case in bench.cases:
        kind = _kind(case.name)
        if kind is None:
            continue  # forced paths answer another question
        yield Point(
            bundle=bundle.name,
            name=case.name,
            kind=kind,
            p50_ms=case.latency_ms.p50,
            p95_ms=case.latency_ms.p95,
            top1=case.top1,
            computation_percentage=case.computation_percentage,
            latency_ratio=None if p50 is None else case.latency_ms.p50 / p50,
            top1_change=None if case.top1 is None or top1 is None else case.top1 - top1,
        )


def _kind(case: str) -> Kind | None:
    """What a case of a bench is on the frontier; ``None`` if it has no place there."""
    if case == DYNAMIC:
        return "dynamic"
    if case.startswith(BUDGET):
        return "budget"
    return "static" if case.startswith(STATIC) else None


def _budgets(bundle: Bundle) -> tuple[BudgetPoint, ...]:
    return tuple(
        BudgetPoint(100.0 * b.budget, b.bias, b.computation_percentage, b.top1, b.latency_ms, b.samples)
        for b in bundle.manifest.budgets
    )
