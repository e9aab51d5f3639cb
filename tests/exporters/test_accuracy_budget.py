"""The cheapest budget that keeps an accuracy: chosen on one half of the images, checked on the other."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dfs_deploy.bundle import Bundle
from dfs_deploy.bundle.manifest import AccuracyBudget, AccuracyHalf, ReferenceRecord
from dfs_deploy.checkpoints import save_checkpoint
from dfs_deploy.costs import LatencyTable, OptionCost, save_costs
from dfs_deploy.data import Dataset, save_npz
from dfs_deploy.data.digits import load_digits
from dfs_deploy.errors import AccuracyGoalError, BundleError, DataError, UsageError
from dfs_deploy.exporters import Exported, export
from dfs_deploy.exporters.accuracy_budget import (
    MOST_LOOKS,
    AccuracyGoal,
    Sweep,
    choose_accuracy_budget,
    notes_on,
)
from dfs_deploy.exporters.accuracy_reference import most_precise_path
from dfs_deploy.models import DFSNetwork
from dfs_deploy.paired import Interval, share_difference
from dfs_deploy.runtimes import Runtime
from dfs_deploy.runtimes.budgets import computation_prices
from dfs_deploy.verify import verify
from tests.builders import small_network
from tests.bundles import Made, copied, labelled, manifest_of, write_manifest
from tests.checks import refuses
from tests.settled import CONTRACT, pixels, settled_network

DIGITS = Path(__file__).parents[2] / "examples" / "digits.pt"


@pytest.fixture(scope="module")
def network() -> DFSNetwork:
    """Nine gated blocks, and a gate that makes small steps."""
    return settled_network(blocks=5, seed=3)


@pytest.fixture(scope="module")
def data(network: DFSNetwork) -> Dataset:
    """Images of which the network as trained knows every one."""
    return labelled(network, 240)


@pytest.fixture(scope="module")
def plain(network: DFSNetwork, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Its bundle without an accuracy budget."""
    folder = tmp_path_factory.mktemp("plain")
    save_checkpoint(folder / "net.pt", network, CONTRACT)
    save_npz(folder / "data.npz", data)
    made = export(folder / "net.pt", folder / "net.dfs", targets=["fp32"], calibration_data=data)
    return Made(made.bundle.path, folder / "net.pt", network, data, folder / "data.npz")


@pytest.fixture(scope="module")
def kept(plain: Made, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same with one: at most 5 points may be lost."""
    out = tmp_path_factory.mktemp("kept") / "net.dfs"
    return export(plain.checkpoint, out, targets=["fp32"], calibration_data=data, max_top1_drop=0.05, seed=2)


@pytest.fixture
def runtime(plain: Made) -> Iterator[Runtime]:
    with Runtime(plain.path) as opened:
        yield opened


def point_of(exported: Exported) -> AccuracyBudget:
    point = exported.bundle.manifest.accuracy_budget
    assert point is not None
    return point


def halves(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """The halves of an export, which draws the images first and then divides them."""
    mixed = data.subset(None, seed).subset(None, seed)
    return mixed.select(slice(0, None, 2)), mixed.select(slice(1, None, 2))


def timed(network: DFSNetwork, **us: float) -> LatencyTable:
    """A table in which an option takes the same time at every block."""
    blocks = network.architecture.blocks
    return LatencyTable(
        bundle="b" * 64,
        machine="a CPU of the test",
        runtime="onnxruntime 1",
        threads=1,
        image_shape=network.architecture.image_shape,
        block_shapes=tuple(block.out_shape for block in blocks),
        gate_us=1.0,
        entries=[
            OptionCost(block=i, option=name, engine_us=each, precision="fp32" if each else None)
            for i in range(1, len(blocks))
            for name, each in us.items()
        ],
    )


TIMES = {"skip": 0.0, "8": 10.0, "16": 40.0, "full": 40.0}


# The sweep


@settings(max_examples=15)
@given(biases=st.lists(st.floats(-30, 30), min_size=3, max_size=7, unique=True), by_time=st.booleans())
def test_what_a_sweep_does_not_run_is_as_if_it_had(plain: Made, biases: list[float], by_time: bool) -> None:
    """In any order of biases, the results are those of a runtime that runs every image at each of them."""
    few = plain.data.select(slice(60))
    with Runtime(plain.path) as swept, Runtime(plain.path) as whole:
        architecture, options = swept.bundle.architecture, swept.options
        prices = computation_prices(architecture, options)
        if by_time:
            prices = timed(plain.network, **TIMES).costs(architecture, options)
        sweep = Sweep(swept, few, prices)
        for bias in biases:
            trial = sweep(bias)
            whole.set_cost_bias(bias, prices)
            expected = whole(few.images)
            np.testing.assert_array_equal(trial.path, expected.path)
            np.testing.assert_array_equal(trial.right, expected.classes == few.labels)
            assert 0.0 <= sweep.least_cost <= trial.cost + 1e-9 <= 1.0 + 2e-9


def test_a_sweep_runs_few_images(runtime: Runtime, data: Dataset) -> None:
    sweep = Sweep(runtime, data, computation_prices(runtime.bundle.architecture, runtime.options))
    for bias in (0.0, 1.0, *np.linspace(0.0, 1.0, 40)[1:-1]):
        sweep(float(bias))
    assert sweep.images_run < 20 * len(data), "of 41 biases"


# A bundle that was exported so


def test_the_record_is_what_a_runtime_measures(kept: Exported, data: Dataset) -> None:
    point = point_of(kept)
    assert (point.max_top1_drop, point.seed, point.prices, point.machine) == (0.05, 2, None, None)
    assert point.reference == ReferenceRecord(kind="as-trained", name=None, sha256=None)
    with Runtime(kept.bundle) as runtime:
        for half, seen in zip((point.chosen, point.checked), halves(data, 2), strict=True):
            found = runtime(seen.images)
            runtime.set_budget("trained")
            trained = runtime(seen.images)
            runtime.set_budget(None)
            assert half.samples == len(seen) == 120
            assert half.top1 == pytest.approx(np.mean(found.classes == seen.labels))
            assert half.top1_trained == half.top1_reference == np.mean(trained.classes == seen.labels)
            change = share_difference(found.classes == seen.labels, trained.classes == seen.labels)
            assert (half.top1_change, half.top1_change_low, half.top1_change_high) == (
                pytest.approx(change.value),
                pytest.approx(change.low),
                pytest.approx(change.high),
            )
            assert half.computation_percentage == pytest.approx(found.computation_percentage.mean(), abs=1e-3)
            assert half.computation_percentage_trained == pytest.approx(trained.computation_percentage.mean(), abs=1e-3)
            assert half.computation_percentage < half.computation_percentage_trained
    assert -0.05 <= point.chosen.top1_change <= 0.0
    assert kept.as_json()["accuracy_budget"] == msgspec.to_builtins(point)


def test_no_cheaper_bias_would_do(kept: Exported, data: Dataset) -> None:
    """By its own half, and by a standard error; a little slack for how finely the search looks."""
    point = point_of(kept)
    assert point.looks == 1
    half, _ = halves(data, 2)
    with Runtime(kept.bundle) as runtime:
        reference = runtime_right(runtime, half, None)
        for bias in np.linspace(point.bias, 20.0, 60)[1:]:
            found = runtime_right(runtime, half, float(bias))
            change = share_difference(found, reference)
            if change.value - (change.high - change.low) / 3.92 >= -0.05:
                runtime.set_cost_bias(float(bias))
                cost = runtime(half.images).computation_percentage.mean()
                assert cost > point.chosen.computation_percentage - 2.0, "else it would have been chosen"


def runtime_right(runtime: Runtime, data: Dataset, bias: float | None) -> NDArray[np.bool_]:
    runtime.set_cost_bias(0.0 if bias is None else bias)
    return np.asarray(runtime(data.images).classes == data.labels)


def test_a_runtime_holds_it_until_told_otherwise(kept: Exported, plain: Made) -> None:
    images, point = pixels(60, seed=9), point_of(kept)
    with Runtime(kept.bundle.path) as runtime, Runtime(plain.path) as trained:
        assert (runtime.budget, runtime.cost_bias) == (None, point.bias)
        trained.set_cost_bias(point.bias)
        assert runtime(images) == trained(images)
        trained.set_budget(None)
        assert runtime(images) != trained(images)
        runtime.set_budget("trained")
        assert (runtime.budget, runtime.cost_bias) == ("trained", 0.0)
        assert runtime(images) == trained(images)
        with Runtime(kept.bundle.path, budget="trained") as other:
            assert other(images) == trained(images)
        runtime.set_budget(None)
        assert runtime.cost_bias == point.bias


def test_verify_follows_it_on_both_sides(kept: Exported, plain: Made) -> None:
    found = verify(kept.bundle.path, plain.checkpoint, plain.data)
    trained = verify(kept.bundle.path, plain.checkpoint, plain.data, budget="trained")
    assert (found.budget, trained.budget) == (None, "trained")
    assert found.route_agreement > 0.98
    assert found.computation_percentage_reference < trained.computation_percentage_reference
    assert found.computation_percentage_reference == pytest.approx(found.computation_percentage_bundle, abs=0.5)


def test_by_a_latency_table_time_is_what_falls(plain: Made, data: Dataset, tmp_path: Path) -> None:
    """Here 16 bits take the time of full precision, so only skips and 8 bits save anything."""
    table = timed(plain.network, **TIMES)
    save_costs(tmp_path / "costs.json", table)
    made = export(
        plain.checkpoint,
        tmp_path / "net.dfs",
        targets=["fp32"],
        calibration_data=data,
        max_top1_drop=0.1,
        cost=tmp_path / "costs.json",
    )
    point = point_of(made)
    prices = table.costs(made.bundle.architecture, made.bundle.options)
    np.testing.assert_array_equal(point.prices, prices)
    assert point.machine == "a CPU of the test"
    with Runtime(made.bundle.path) as runtime:
        half, _ = halves(data, 0)
        result = runtime(half.images)
        by_block = prices[np.arange(result.path.shape[1]), result.path]
        share = 100.0 * by_block.sum(1).mean() / prices.max(1).sum()
        assert point.chosen.time_percentage == pytest.approx(share)
        assert point.chosen.time_percentage_trained is not None
        assert share < point.chosen.time_percentage_trained
        with runtime.clone() as clone, pickle.loads(pickle.dumps(runtime)) as again:  # noqa: S301
            assert clone(half.images) == again(half.images) == result
            assert (again.budget, again.cost_bias) == (None, point.bias)
            np.testing.assert_array_equal(again.score_offset, runtime.score_offset)


def test_digits_keep_their_accuracy_at_less_cost(tmp_path: Path) -> None:
    """The network of the examples, INT8 engines and all, on digits that it was not trained on."""
    unseen = load_digits("test")
    made = export(
        DIGITS,
        tmp_path / "digits.dfs",
        calibration_data=load_digits("train"),
        calibration_samples=128,
        accuracy_data=unseen,
        max_top1_drop=0.01,
    )
    point = point_of(made)
    assert (point.chosen.samples, point.checked.samples) == (250, 250)
    assert not point.refuted
    for half in (point.chosen, point.checked):
        assert half.computation_percentage < half.computation_percentage_trained - 1.0
        assert half.top1 > 0.95
    assert point.chosen.top1_change >= -0.01
    with Runtime(made.bundle.path) as runtime:
        right = np.mean(runtime(unseen.images).classes == unseen.labels)
    assert right == pytest.approx((point.chosen.top1 + point.checked.top1) / 2)


# The reference


def test_a_bundle_or_a_checkpoint_may_be_the_reference(plain: Made, data: Dataset, runtime: Runtime) -> None:
    for path, kind, digest in (
        (plain.path, "bundle", Bundle(plain.path).digest),
        (plain.checkpoint, "checkpoint", None),
    ):
        point = choose_accuracy_budget(runtime, data, AccuracyGoal(0.05, path))
        assert (point.reference.kind, point.reference.name) == (kind, {"bundle": "net", "checkpoint": "net.pt"}[kind])
        assert digest is None or point.reference.sha256 == digest
        assert point.chosen.top1_reference > 0.98
        assert runtime.cost_bias == 0.0, "left as the gate was trained"


def test_the_most_precise_path_is_the_reference_if_it_is_better(runtime: Runtime) -> None:
    path = np.full((200, runtime.bundle.architecture.gated_blocks), 3)
    images = pixels(200, seed=4)
    data = Dataset(images, runtime(images, path=path).classes, CONTRACT.class_names, "precise")
    point = choose_accuracy_budget(runtime, data, AccuracyGoal(0.02))
    assert point.reference.kind == "most-precise-path"
    assert (point.chosen.top1_reference, point.checked.top1_reference) == (1.0, 1.0)
    assert point.bias < 0.0, "as trained it loses too much, so it computes more"
    assert point.chosen.computation_percentage > point.chosen.computation_percentage_trained


def test_the_most_precise_path_minds_what_a_block_may_run(network: DFSNetwork) -> None:
    blocks = list(network.architecture.blocks)
    blocks[2] = msgspec.structs.replace(blocks[2], options=("skip", "8"))
    narrowed = msgspec.structs.replace(network.architecture, blocks=tuple(blocks))
    assert most_precise_path(narrowed, network.options).tolist() == [3, 1, *[3] * 7]


@pytest.mark.parametrize("words", [("images of", "(3, 8, 8)"), ("classes", "expected 10"), ("numbers its classes",)])
def test_a_reference_that_is_of_other_data(
    words: tuple[str, ...], data: Dataset, runtime: Runtime, tmp_path: Path
) -> None:
    other, contract = settled_network("skip,full", classes=10 if words[0] != "classes" else 5), CONTRACT
    if words[0] == "classes":
        contract = replace(CONTRACT, class_names=())
    elif words[0] == "numbers its classes":
        contract = replace(CONTRACT, class_names=CONTRACT.class_names[::-1])
    else:
        other, contract = small_network("skip,full", 2, 10, size=(16, 16)), replace(CONTRACT, shape=(3, 16, 16))
    save_checkpoint(tmp_path / "other.pt", other, contract)
    with refuses(UsageError, "other.pt", *words, "--reference"):
        choose_accuracy_budget(runtime, data, AccuracyGoal(0.05, tmp_path / "other.pt"))


# What fails, and what is said


def test_if_no_budget_keeps_it_nothing_is_written(plain: Made, tmp_path: Path) -> None:
    better = settled_network(blocks=5, seed=8)
    save_checkpoint(tmp_path / "better.pt", better, CONTRACT)
    data, out = labelled(better, 100), tmp_path / "net.dfs"
    with refuses(
        AccuracyGoalError, "no budget", "within 0.50 points of checkpoint better.pt (100.00 % on 50", "the best, at"
    ):
        export(
            plain.checkpoint,
            out,
            targets=["fp32"],
            calibration_data=data,
            max_top1_drop=0.005,
            reference=tmp_path / "better.pt",
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["better.pt"]


def contradictory(runtime: Runtime) -> Dataset:
    """Images of which one half is right along the cheapest path only, the other along the most precise one only."""
    images, blocks = pixels(200, seed=4), runtime.bundle.architecture.gated_blocks
    ends = [runtime(images, path=np.full((200, blocks), option)).classes for option in (0, 3)]
    differ = np.flatnonzero(ends[0] != ends[1])
    images, cheap, precise = images[differ], ends[0][differ], ends[1][differ]
    place = np.argsort(np.random.default_rng(0).permutation(len(differ)))  # as a draw of the seed 0 orders them
    return Dataset(images, np.where(place % 2 == 0, cheap, precise), CONTRACT.class_names, "contradictory")


def test_a_check_that_refutes_the_choice_fails(runtime: Runtime) -> None:
    data = contradictory(runtime)
    with refuses(AccuracyGoalError, "does not on", "others", "95 % confidence", "more labelled images"):
        choose_accuracy_budget(runtime, data, AccuracyGoal(0.02))
    assert runtime.cost_bias == 0.0


def test_a_check_that_disagrees_leads_to_a_dearer_choice_and_says_so(runtime: Runtime, data: Dataset) -> None:
    """If nothing at all may be lost, some divisions into halves have a first choice that loses on the other half."""
    seen = set()
    for seed in range(5):
        point = choose_accuracy_budget(runtime, data, AccuracyGoal(0.0), seed=seed)
        told = [note for note in notes_on(point) if "budgets were checked" in note]
        assert (len(told) == 1) == (point.looks > 1)
        assert min(point.chosen.top1_change, point.checked.top1_change) >= 0.0
        seen.add(point.looks)
    assert 1 in seen
    assert 1 < max(seen) <= MOST_LOOKS


def made_record(change: float, low: float, high: float, drop: float = 0.005, samples: int = 500) -> AccuracyBudget:
    half = AccuracyHalf(
        samples=samples,
        top1=0.9 + change,
        top1_trained=0.9,
        top1_reference=0.9,
        top1_change=change,
        top1_change_low=low,
        top1_change_high=high,
        computation_percentage=40.0,
        computation_percentage_trained=50.0,
        time_percentage=None,
        time_percentage_trained=None,
    )
    return AccuracyBudget(
        max_top1_drop=drop,
        bias=1.0,
        prices=None,
        machine=None,
        reference=ReferenceRecord(kind="as-trained", name=None, sha256=None),
        data="made",
        seed=0,
        chosen=half,
        checked=half,
        looks=1,
    )


def test_too_few_images_are_said_with_the_number_that_would_do() -> None:
    proved, refuted, open_ = (
        made_record(0.0, -0.004, 0.004),
        made_record(-0.02, -0.03, -0.01),
        made_record(0.0, -0.02, 0.02),
    )
    assert (proved.proved, proved.refuted, notes_on(proved)) == (True, False, ())
    assert (refuted.proved, refuted.refuted) == (False, True)
    assert (open_.proved, open_.refuted) == (False, False)
    several = msgspec.structs.replace(proved, looks=2)
    assert (several.within, several.proved, several.refuted) == (True, False, False), "within by luck, perhaps"
    (note,) = notes_on(several)
    assert "proves nothing" in note
    assert open_.images_needed == 2 * 500 * 16
    (note,) = notes_on(open_)
    assert "cannot tell yet" in note
    assert "about 16,000 would tell" in note
    at_the_edge = made_record(-0.005, -0.02, 0.01)
    assert at_the_edge.images_needed is None
    assert "no number would tell" in notes_on(at_the_edge)[0]


def test_a_budget_that_loses_too_much_is_hardly_ever_called_proved() -> None:
    """If every choice loses too much, the more of them are looked at, the more often one is within by luck."""
    within, proved, runs, drop = 0, 0, 2000, 0.005
    random = np.random.default_rng(0)
    for _ in range(runs):
        changes: list[Interval] = []
        while len(changes) < MOST_LOOKS and (not changes or changes[-1].value < -drop):
            chance = random.random(1000)
            changes.append(share_difference(chance > 0.036, chance < 0.97))
        record = made_record(changes[-1].value, changes[-1].low, changes[-1].high, drop)
        record = msgspec.structs.replace(record, looks=len(changes))
        within, proved = within + record.within, proved + record.proved
    assert proved <= 0.025 * runs < within


def test_a_weak_reference_is_remarked_on() -> None:
    record = made_record(0.05, 0.03, 0.07)
    weak = msgspec.structs.replace(record.chosen, top1_trained=0.96, top1_reference=0.9)
    named = ReferenceRecord(kind="bundle", name="twin", sha256="0" * 64)
    (note,) = notes_on(msgspec.structs.replace(record, chosen=weak, reference=named))
    assert "twin is 6.00 points less accurate" in note


def test_images_of_the_training_split_are_remarked_on(plain: Made, data: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "splits.npz"
    parts = {
        "train": data.select(slice(0, 120)),
        "val": data.select(slice(120, 180)),
        "test": data.select(slice(180, 240)),
    }
    np.savez(file, **{f"{n}_{k}": v for n, d in parts.items() for k, v in (("x", d.images), ("y", d.labels))})
    common = {"targets": ["fp32"], "max_top1_drop": 0.1}
    seen = export(plain.checkpoint, tmp_path / "a.dfs", calibration_data=file, **common)  # type: ignore[arg-type]
    assert any("a training split" in note and "--accuracy-data" in note for note in seen.notes)
    assert point_of(seen).chosen.samples == 60
    other = export(plain.checkpoint, tmp_path / "b.dfs", calibration_data=file, accuracy_data=file, **common)  # type: ignore[arg-type]
    assert not any("a training split" in note for note in other.notes)
    assert point_of(other).chosen.samples + point_of(other).checked.samples == 60, "those to validate on"


@pytest.mark.parametrize(
    ("splits", "images", "remarked"),
    [(("train", "val"), 60, False), (("val",), 60, False), (("train", "test"), 120, True), (("train",), 120, True)],
)
def test_accuracy_data_are_those_to_validate_on_and_the_training_split_is_remarked_on(
    plain: Made, data: Dataset, tmp_path: Path, splits: tuple[str, ...], images: int, remarked: bool
) -> None:
    starts = {"train": (0, 120), "val": (120, 180), "test": (180, 240)}
    parts = {name: data.select(slice(*starts[name])) for name in splits}
    file = tmp_path / "splits.npz"
    np.savez(file, **{f"{n}_{k}": v for n, d in parts.items() for k, v in (("x", d.images), ("y", d.labels))})
    made = export(
        plain.checkpoint,
        tmp_path / "net.dfs",
        targets=["fp32"],
        calibration_data=data,
        accuracy_data=file,
        max_top1_drop=0.1,
    )
    assert point_of(made).chosen.samples + point_of(made).checked.samples == images
    assert any("a training split" in note for note in made.notes) == remarked


def test_accuracy_data_with_nothing_but_a_test_split_are_refused(plain: Made, data: Dataset, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", test_x=data.images, test_y=data.labels)
    with refuses(DataError, "train"):
        export(
            plain.checkpoint,
            tmp_path / "net.dfs",
            calibration_data=data,
            accuracy_data=tmp_path / "test.npz",
            max_top1_drop=0.1,
        )


def test_what_an_accuracy_budget_needs(plain: Made, data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "net.dfs"
    with refuses(UsageError, "--accuracy-data", "--calibration-data"):
        export(plain.checkpoint, out, max_top1_drop=0.005)
    with refuses(UsageError, "onnxruntime"):
        export(plain.checkpoint, out, max_top1_drop=0.005, calibration_data=data, runtimes=["tensorrt"])
    for drop in (-0.1, 1.5, float("nan")):
        with refuses(UsageError, "--max-top1-drop", "0 to 1"):
            export(plain.checkpoint, out, max_top1_drop=drop, calibration_data=data)
    for name in ("reference", "cost", "accuracy_data"):
        with refuses(UsageError, f"--{name.replace('_', '-')}", "--max-top1-drop"):
            export(plain.checkpoint, out, calibration_data=data, **{name: tmp_path / "x"})  # type: ignore[arg-type]
    with refuses(UsageError, "1 labelled image", "at least 2"):
        export(plain.checkpoint, out, calibration_data=data.select(slice(1)), targets=["fp32"], max_top1_drop=0.005)
    Image.fromarray(data.images[0]).save(tmp_path / "a.png")
    with refuses(DataError, "one per class"):
        export(plain.checkpoint, out, calibration_data=data, accuracy_data=tmp_path, max_top1_drop=0.005)
    assert not out.exists()


def test_a_network_that_decides_nothing_has_no_budget(network: DFSNetwork, data: Dataset, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.pt", network.with_policy([1] * 9), CONTRACT)
    with refuses(UsageError, "--max-top1-drop", "policy is static"):
        export(tmp_path / "net.pt", tmp_path / "net.dfs", calibration_data=data, max_top1_drop=0.005)


# Bundles


def test_a_bundle_without_one_loads_and_runs_as_trained(kept: Exported, plain: Made, tmp_path: Path) -> None:
    """As made before there were accuracy budgets."""
    made = Made(kept.bundle.path, plain.checkpoint, plain.network, plain.data, plain.data_file)
    bundle = copied(made, tmp_path)
    values = manifest_of(bundle)
    del values["accuracy_budget"]
    write_manifest(bundle, values)
    with Runtime(bundle) as runtime, Runtime(plain.path) as trained:
        assert runtime(plain.data.images) == trained(plain.data.images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prices": [[0.0, 1.0]]}, "prices"),
        ({"checked": {"top1_change_low": 0.5}}, "interval"),
        ({"bias": 1e7}, "bias"),
        ({"looks": 0}, "looks"),
        ({"luck": 1}, "luck"),
    ],
)
def test_a_record_that_cannot_be(
    kept: Exported, plain: Made, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    made = Made(kept.bundle.path, plain.checkpoint, plain.network, plain.data, plain.data_file)
    bundle = copied(made, tmp_path)
    values = manifest_of(bundle)
    for key, value in change.items():
        if isinstance(value, dict):
            values["accuracy_budget"][key].update(value)
        else:
            values["accuracy_budget"][key] = value
    write_manifest(bundle, values)
    with refuses(BundleError, words):
        Bundle(bundle)
