from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.data import Dataset
from dfs_deploy.errors import BundleError
from dfs_deploy.report import BundleReport, as_json, report_bundle
from dfs_deploy.report.build import distinct_names
from dfs_deploy.report.results import Report
from dfs_deploy.runtimes import Runtime
from tests.bundles import Made, copied, manifest_of, static_bundle, write_manifest
from tests.checks import refuses

QUICK: Any = {"min_s": 0.02, "min_iterations": 4}


def test_the_outcome_is_the_runtimes(mixed: Made, told: BundleReport) -> None:
    with Runtime(mixed.path) as runtime:
        result = runtime(mixed.data.images)
    assert told.outcome.inputs == len(mixed.data.images)
    assert told.outcome.top1 == np.mean(result.classes == mixed.data.labels)
    assert told.outcome.distinct_paths == len(np.unique(result.path, axis=0))
    np.testing.assert_allclose(told.outcome.computation_percentage, result.computation_percentage.mean(), rtol=1e-5)
    assert told.paths_share <= 1.0
    assert told.paths_listed == len(told.paths)


def test_the_frontier_has_the_network_first_and_each_static_engine(told: BundleReport) -> None:
    assert [point.name for point in told.frontier] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
    dfs, *statics = told.frontier
    assert (dfs.kind, dfs.latency_ratio, dfs.top1_change) == ("dynamic", 1.0, 0.0)
    for point in statics:
        assert point.kind == "static"
        assert point.latency_ratio == point.p50_ms / dfs.p50_ms
        assert point.top1 is not None
        assert dfs.top1 is not None
        assert point.top1_change == point.top1 - dfs.top1


def test_budgets_are_points_of_the_bench_itself(mixed: Made, tmp_path: Path) -> None:
    """On the same images, in the same turns, on this machine: whatever export measured elsewhere."""
    bundle = copied(mixed, tmp_path)
    point = {"computation_percentage": 10.0, "top1": 0.123, "latency_ms": 77.0, "samples": 9}
    records = [{"budget": 0.1, "bias": 400.0, **point}, {"budget": 0.9, "bias": -400.0, **point}]
    write_manifest(bundle, {**manifest_of(bundle), "budgets": records})
    made = report_bundle(Bundle(bundle), mixed.data, samples=8, examples=0, **QUICK)
    assert made.bench is not None
    points = [point for point in made.frontier if point.kind == "budget"]
    assert [point.name for point in points] == ["dfs-budget-10", "dfs-budget-90"]
    for found in points:
        case = made.bench.case(found.name)
        assert case is not None
        assert (found.p50_ms, found.top1) == (case.latency_ms.p50, case.top1)
        assert found.latency_ratio is not None
    assert [budget.latency_ms for budget in made.budgets] == [77.0, 77.0], "what export measured stands apart"
    again = report_bundle(Bundle(bundle), mixed.data, told_bench(made), samples=8, examples=0)
    assert [point.name for point in again.frontier] == ["dfs", "static-fp32"], "an older file has none"


def told_bench(made: BundleReport) -> Any:
    """The bench of a report as a file without budgets holds it."""
    assert made.bench is not None
    cases = [case for case in made.bench.cases if case.name in ("dfs", "static-fp32")]
    return msgspec.structs.replace(made.bench, cases=cases)


def test_without_data_the_carried_images_are_run_and_no_accuracy_is_told(told_without_labels: BundleReport) -> None:
    outcome = told_without_labels.outcome
    assert (outcome.labelled, outcome.top1) == (False, None)
    assert "carried" in outcome.data
    assert all(point.top1 is None for point in told_without_labels.frontier)
    assert all(path.top1 is None for path in told_without_labels.paths)
    assert all(example.correct is None and example.label is None for example in told_without_labels.examples)


def test_examples_are_the_ends(mixed: Made, told: BundleReport) -> None:
    easy = [example for example in told.examples if example.end == "easy"]
    hard = [example for example in told.examples if example.end == "hard"]
    assert len(easy) == len(hard) == 3
    with Runtime(mixed.path) as runtime:
        cost = runtime(mixed.data.images).computation_percentage
    assert [example.computation_percentage for example in easy] == sorted(cost.tolist())[:3]
    assert [example.computation_percentage for example in hard] == sorted(cost.tolist())[::-1][:3]
    assert all(example.correct == (example.label == example.answer) for example in told.examples)


def test_pictures_are_the_inputs(mixed: Made, told: BundleReport) -> None:
    inputs = {image.tobytes() for image in mixed.data.images}
    for example in told.examples:
        scheme, _, content = example.image.partition(",")
        assert scheme == "data:image/png;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert picture.tobytes() in inputs


def test_pictures_can_be_kept_out_and_a_bench_can_be_given(mixed: Made, told: BundleReport) -> None:
    again = report_bundle(Bundle(mixed.path), mixed.data, told.bench, examples=0)
    assert again.examples == ()
    assert again.bench == told.bench
    assert again.frontier == told.frontier
    assert (again.decisions, again.paths, again.tree) == (told.decisions, told.paths, told.tree)


def test_inputs_are_drawn_by_seed(mixed: Made, told: BundleReport) -> None:
    one, two = (report_bundle(Bundle(mixed.path), mixed.data, told.bench, samples=20, seed=s) for s in (1, 2))
    assert one.outcome.inputs == two.outcome.inputs == 20
    assert one.decisions != two.decisions


def test_figures_do_not_depend_on_the_order_of_inputs(mixed: Made, told: BundleReport) -> None:
    data = mixed.data
    turned = Dataset(data.images[::-1].copy(), data.labels[::-1].copy(), data.class_names, data.name)
    again = report_bundle(Bundle(mixed.path), turned, told.bench, samples=None)
    assert (again.decisions, again.paths, again.tree) == (told.decisions, told.paths, told.tree)
    assert again.outcome == told.outcome


def test_what_ran_otherwise_in_the_bench_is_told(mixed: Made, told: BundleReport) -> None:
    assert told.bench is not None
    assert told.bench_differs == ()
    runtime = msgspec.structs.replace(told.bench.runtime, plan="a plan of old", layout="")
    bench = msgspec.structs.replace(told.bench, runtime=runtime)
    (line,) = report_bundle(Bundle(mixed.path), mixed.data, bench, samples=8, examples=0).bench_differs
    assert line.startswith("plan: a plan of old in the bench, ")


def test_engines_need_not_be_prepared(mixed: Made, told: BundleReport) -> None:
    plain = report_bundle(Bundle(mixed.path), mixed.data, samples=8, examples=0, prepared=False, **QUICK)
    assert plain.bench is not None
    with Runtime(mixed.path, prepared=False) as runtime:
        assert plain.bench.runtime.layout == runtime.description["layout"]


def test_the_json_is_strict(told: BundleReport) -> None:
    text = json.dumps(as_json(Report("0", "now", (told,))), allow_nan=False)
    assert json.loads(text)["schema"] == "dfs-deploy/report"


def test_bundles_of_one_name_are_told_apart(told: BundleReport) -> None:
    other = replace(told, facts=replace(told.facts, digest="f" * 64))
    first, second = distinct_names((told, other))
    assert first.facts.name != second.facts.name
    assert {point.bundle for point in second.frontier} == {second.facts.name}
    assert distinct_names((told,)) == (told,)


def test_a_bundle_for_another_runtime_is_refused(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    values = manifest_of(bundle)
    del values["runtimes"]["onnxruntime"]
    write_manifest(bundle, values)
    with refuses(BundleError, "onnxruntime"):
        report_bundle(Bundle(bundle))


def test_a_network_with_a_static_policy_is_told_of(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = static_bundle(tmp_path_factory)
    told = report_bundle(Bundle(made.path), made.data, samples=8, examples=2, **QUICK)
    assert told.outcome.distinct_paths == len(told.paths) == 1
    assert {(engine.block, engine.option) for engine in told.engines} == {(1, "8"), (2, "skip"), (3, "16")}
