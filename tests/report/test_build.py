from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from dfs_deploy.bench.result import BenchResult
from dfs_deploy.bundle import Bundle
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.data import Dataset
from dfs_deploy.data.digits import DIGITS_CLASSES
from dfs_deploy.errors import BundleError, DataError, SavedResultError, UsageError
from dfs_deploy.exporters import export
from dfs_deploy.models import cifar_network
from dfs_deploy.network import cifar_resnet
from dfs_deploy.options import Options
from dfs_deploy.preprocessing import InputContract
from dfs_deploy.report import BundleReport, Report, render_page, report
from dfs_deploy.report.build import match_benches
from dfs_deploy.report.charts import frontier
from dfs_deploy.runtimes import Runtime
from tests.bundles import (
    ALL_FIXED,
    FIXED,
    MASKED,
    Choices,
    Made,
    copied,
    manifest_of,
    narrowed,
    static_bundle,
    write_manifest,
)
from tests.checks import refuses

ONE, TWO = "1" * 64, "2" * 64
QUICK: Any = {"min_seconds": 0.02, "min_iterations": 4}


def made_of(bundle: Path, data: Any = None, bench: BenchResult | None = None, **how: Any) -> BundleReport:
    (made,) = report(bundle, data=data, bench=[] if bench is None else bench, **how).bundles
    return made


def test_the_outcome_is_the_runtimes(mixed: Made, one: BundleReport) -> None:
    with Runtime(mixed.path) as runtime:
        result = runtime(mixed.data.images)
    assert one.outcome.inputs == len(mixed.data.images)
    assert one.outcome.top1 == np.mean(result.classes == mixed.data.labels)
    assert one.outcome.distinct_paths == len(np.unique(result.path, axis=0))
    np.testing.assert_allclose(one.outcome.computation_percentage, result.computation_percentage.mean(), rtol=1e-5)
    assert one.paths_share <= 1.0
    assert one.paths_listed == len(one.paths)


@pytest.mark.parametrize("choices", [FIXED, MASKED, ALL_FIXED], ids=["fixed", "masked", "all fixed"])
def test_blocks_with_choices_of_their_own(mixed: Made, tmp_path: Path, choices: Choices) -> None:
    bundle = narrowed(copied(mixed, tmp_path), choices)
    with Runtime(bundle) as runtime:
        result, blocks, options = runtime(mixed.data.images), runtime.bundle.architecture.blocks, runtime.options
    made = made_of(bundle, mixed.data, min_seconds=0.0, min_iterations=3)
    assert made.facts.gated_blocks == len(Bundle(bundle).architecture.decided(options))
    assert [(each.block, each.option) for each in made.decisions] == [
        (block.index, option.name) for block in blocks[1:] for option in block.choices(options)
    ]
    assert made.outcome.computation_percentage == pytest.approx(float(result.computation_percentage.mean()), rel=1e-5)
    allowed = {(block.index, option.name) for block in blocks[1:] for option in block.choices(options)}
    assert {(figures.block, figures.option) for figures in made.engines} <= allowed
    assert {(branch.block, branch.option) for branch in made.tree} <= allowed


def test_the_frontier_has_the_network_first_and_each_static_engine(one: BundleReport) -> None:
    assert [point.name for point in one.frontier] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
    dfs, *statics = one.frontier
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
    made = made_of(bundle, mixed.data, samples=8, examples=0, **QUICK)
    points = [point for point in made.frontier if point.kind == "budget"]
    assert [point.name for point in points] == ["dfs-budget-10", "dfs-budget-90"]
    for found in points:
        case = made.bench.case(found.name)
        assert case is not None
        assert (found.p50_ms, found.top1) == (case.latency_ms.p50, case.top1)
        assert found.latency_ratio is not None
    assert [budget.latency_ms for budget in made.budgets] == [77.0, 77.0], "what export measured stands apart"
    again = made_of(bundle, mixed.data, without_budgets(made), samples=8, examples=0)
    assert [point.name for point in again.frontier] == ["dfs", "static-fp32"], "an older file has none"


def without_budgets(made: BundleReport) -> BenchResult:
    """The bench of a report as a file without budgets holds it."""
    cases = tuple(case for case in made.bench.cases if case.name in ("dfs", "static-fp32"))
    return msgspec.structs.replace(made.bench, cases=cases)


def test_without_data_the_carried_images_are_run_and_no_accuracy_is_told(unlabelled: BundleReport) -> None:
    outcome = unlabelled.outcome
    assert (outcome.labelled, outcome.top1) == (False, None)
    assert "carried" in outcome.data
    assert all(point.top1 is None for point in unlabelled.frontier)
    assert all(path.top1 is None for path in unlabelled.paths)
    assert all(example.correct is None and example.label is None for example in unlabelled.examples)


def test_without_data_a_bundle_for_the_digits_runs_them_with_labels(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("digits")
    network = cifar_network(cifar_resnet((1, 1), (4, 8), 10, (3, 16, 16)), Options.parse("skip,full")).eval()
    save_checkpoint(folder / "net.pt", network, InputContract((3, 16, 16), (0.5,) * 3, (0.25,) * 3, DIGITS_CLASSES))
    bundle = export(folder / "net.pt", folder / "net.dfs", targets=["fp32"]).bundle
    made = made_of(bundle.path, samples=40, examples=0, **QUICK)
    assert (made.outcome.data, made.outcome.inputs, made.outcome.labelled) == ("digits-test", 40, True)
    assert made.outcome.data == made.bench.data


def test_examples_are_the_ends(mixed: Made, one: BundleReport) -> None:
    easy = [example for example in one.examples if example.end == "easy"]
    hard = [example for example in one.examples if example.end == "hard"]
    assert len(easy) == len(hard) == 3
    with Runtime(mixed.path) as runtime:
        cost = runtime(mixed.data.images).computation_percentage
    assert [example.computation_percentage for example in easy] == sorted(cost.tolist())[:3]
    assert [example.computation_percentage for example in hard] == sorted(cost.tolist())[::-1][:3]
    assert all(example.correct == (example.label == example.answer) for example in one.examples)


def test_pictures_are_the_inputs(mixed: Made, one: BundleReport) -> None:
    inputs = {image.tobytes() for image in mixed.data.images}
    for example in one.examples:
        scheme, _, content = example.image.partition(",")
        assert scheme == "data:image/png;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert picture.tobytes() in inputs


def test_pictures_can_be_kept_out_and_a_bench_can_be_given(mixed: Made, one: BundleReport) -> None:
    again = made_of(mixed.path, mixed.data, one.bench, examples=0)
    assert again.examples == ()
    assert again.bench == one.bench
    assert again.frontier == one.frontier
    assert (again.decisions, again.paths, again.tree) == (one.decisions, one.paths, one.tree)


def test_inputs_are_drawn_by_seed(mixed: Made, one: BundleReport) -> None:
    first, second = (made_of(mixed.path, mixed.data, one.bench, samples=20, seed=s) for s in (1, 2))
    assert first.outcome.inputs == second.outcome.inputs == 20
    assert first.decisions != second.decisions


def test_figures_do_not_depend_on_the_order_of_inputs(mixed: Made, one: BundleReport) -> None:
    data = mixed.data
    turned = Dataset(data.images[::-1].copy(), data.labels[::-1].copy(), data.class_names, data.name)
    again = made_of(mixed.path, turned, one.bench, samples=None)
    assert (again.decisions, again.paths, again.tree) == (one.decisions, one.paths, one.tree)
    assert again.outcome == one.outcome


def test_what_ran_otherwise_in_the_bench_is_told(mixed: Made, one: BundleReport) -> None:
    assert one.bench_differs == ()
    runtime = {**one.bench.runtime, "plan": "a plan of old"}
    del runtime["layout"]
    bench = msgspec.structs.replace(one.bench, runtime=runtime)
    (line,) = made_of(mixed.path, mixed.data, bench, samples=8, examples=0).bench_differs
    assert line.startswith("plan: a plan of old in the bench, ")


def test_engines_need_not_be_prepared(mixed: Made, one: BundleReport) -> None:
    plain = made_of(mixed.path, mixed.data, samples=8, examples=0, prepared=False, **QUICK)
    with Runtime(mixed.path, prepared=False) as runtime:
        assert plain.bench.runtime["layout"] == runtime.description["layout"]


def test_the_json_is_strict(one: BundleReport) -> None:
    text = json.dumps(Report("0", "now", (one,)).as_json(), allow_nan=False)
    assert json.loads(text)["schema"] == "dfs-deploy/report"


def test_bundles_of_one_name_differ_by_digest(floats: Made, unlabelled: BundleReport, tmp_path: Path) -> None:
    other = copied(floats, tmp_path)
    write_manifest(other, {**manifest_of(other), "producer": {"name": "dfs-deploy", "version": "other"}})
    digest = Bundle(other).digest
    bench = msgspec.structs.replace(
        unlabelled.bench, bundle=msgspec.structs.replace(unlabelled.bench.bundle, digest=digest)
    )
    made = report([floats.path, other], bench=[bench, unlabelled.bench], examples=0)
    names = [each.facts.name for each in made.bundles]
    assert names == [f"floats ({unlabelled.facts.digest[:8]})", f"floats ({digest[:8]})"]
    assert {point.bundle for point in made.bundles[1].frontier} == {names[1]}


@pytest.fixture(scope="module")
def several(mixed: Made, static: Made) -> Report:
    """A dynamic network and a static one, timed together."""
    return report([static.path, mixed.path], data=mixed.data, samples=24, examples=0, **QUICK)


def test_several_bundles_are_timed_in_one_run(several: Report) -> None:
    plain, dynamic = several.bundles
    assert several.together
    assert plain.bench is dynamic.bench
    assert plain.bench.bundle.name == "mixed", "the first with a gate"
    assert [point.name for point in dynamic.frontier] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
    assert {point.name for point in plain.frontier} >= {"static-policy@static"}
    assert all(point.name.endswith("@static") for point in plain.frontier)
    assert plain.bench_differs == (), "the bench tells how the other one ran"
    assert sum(point.front for each in several.bundles for point in each.frontier) >= 1
    assert not any(point.front for point in dynamic.frontier if point.kind != "static")


def test_the_page_of_several_bundles_has_one_verdict_and_the_line_of_the_best(several: Report) -> None:
    html = render_page(several)
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    told = [shown.count(words) for words in ("The bench is INVALID", "Verdict: ")]
    assert max(told) == 1, "once for all bundles"
    assert "Timed with the other bundles in one run" in shown
    points = [point for each in several.bundles for point in each.frontier]
    kinds = [layer["mark"]["type"] for layer in frontier(points, 0.01)["layer"]]
    assert "rect" in kinds, "the band of equal accuracy"
    assert "rect" not in [layer["mark"]["type"] for layer in frontier(points)["layer"]], "times of different runs"


def test_a_bench_of_several_bundles_serves_each(several: Report) -> None:
    bench = several.bundles[0].bench
    digests = [each.facts.digest for each in several.bundles]
    assert match_benches(digests, [bench]) == (bench, bench)


def test_what_is_compared_with_and_has_no_part_is_on_the_frontier_of_the_one_that_ran(
    mixed: Made, static: Made, floats: Made
) -> None:
    made = report(mixed.path, data=mixed.data, against=[static.path, floats.path], samples=8, examples=0, **QUICK)
    (one,) = made.bundles
    assert not made.together
    assert {"dfs", "dfs@floats", "static-policy@static"} <= {point.name for point in one.frontier}


def test_a_report_is_about_at_least_one_bundle(tmp_path: Path) -> None:
    with refuses(UsageError, "no bundle"):
        report([])
    with refuses(UsageError, "no bundle"):
        report([], html=tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_bundle_for_another_runtime_is_refused(mixed: Made, tmp_path: Path) -> None:
    bundle = copied(mixed, tmp_path)
    values = manifest_of(bundle)
    del values["runtimes"]["onnxruntime"]
    write_manifest(bundle, values)
    with refuses(BundleError, "onnxruntime"):
        made_of(bundle)


def test_a_network_with_a_static_policy_is_told_of(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = static_bundle(tmp_path_factory)
    one = made_of(made.path, made.data, samples=8, examples=2, **QUICK)
    assert one.outcome.distinct_paths == len(one.paths) == 1
    assert {(engine.block, engine.option) for engine in one.engines} == {(1, "8"), (2, "skip"), (3, "16")}


# Benches


def of(bench: BenchResult, digest: str) -> BenchResult:
    return msgspec.structs.replace(bench, bundle=msgspec.structs.replace(bench.bundle, digest=digest))


def test_benches_find_their_bundles(one: BundleReport) -> None:
    first, second = of(one.bench, ONE), of(one.bench, TWO)
    assert match_benches([TWO, ONE], [first, second]) == (second, first)
    assert match_benches([ONE, TWO], [second]) == (None, second)
    assert match_benches([ONE, TWO], []) == (None, None)


def test_benches_that_fit_no_bundle(one: BundleReport) -> None:
    with refuses(DataError, TWO[:12]):
        match_benches([ONE], [of(one.bench, TWO)])
    with refuses(UsageError, "same bundle"):
        match_benches([ONE, TWO], [of(one.bench, ONE), of(one.bench, ONE)])


def test_a_file_of_a_bench_is_read_as_it_was_written(one: BundleReport, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(one.bench.as_json()))
    assert match_benches([one.bench.bundle.digest], [file]) == (one.bench,)
    file.write_text("[1, 2]")
    with refuses(SavedResultError, "bench.json"):
        match_benches([ONE], [file])
