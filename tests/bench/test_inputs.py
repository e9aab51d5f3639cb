from __future__ import annotations

import sys

import numpy as np
import pytest

from dfs_deploy.bench.candidates import MAX_INPUTS, draw_inputs
from dfs_deploy.bundle import Bundle, Samples
from dfs_deploy.data import Dataset
from dfs_deploy.data.digits import DIGITS_CLASSES, load_digits
from dfs_deploy.errors import UsageError
from dfs_deploy.preprocessing import InputContract
from tests.bundles import Made
from tests.checks import refuses


class Digits(Bundle):
    """A bundle as one made for the digits looks to a bench; nothing else of it is read."""

    def __init__(self, made: Made, names: tuple[str, ...] = DIGITS_CLASSES, size: int = 16) -> None:
        super().__init__(made.path)
        self._own = super().samples()
        self.input = InputContract((3, size, size), (0.5,) * 3, (0.25,) * 3, names)

    def samples(self) -> Samples | None:
        return self._own


def test_a_bundle_for_the_digits_runs_them_with_labels(mixed: Made) -> None:
    inputs, test = draw_inputs(Digits(mixed), None, 0), load_digits("test")
    assert inputs.name == "digits-test"
    assert inputs.labels is not None
    assert len(inputs.images) == 500
    assert sorted(inputs.labels.tolist()) == sorted(test.labels.tolist())


@pytest.mark.parametrize(("names", "size"), [((), 16), (tuple("abcdefghij"), 16), (DIGITS_CLASSES, 8)])
def test_another_bundle_runs_its_own_images_without_labels(mixed: Made, names: tuple[str, ...], size: int) -> None:
    inputs = draw_inputs(Digits(mixed, names, size), None, 0)
    assert inputs.labels is None
    assert "carried by the bundle" in inputs.name


def test_without_scikit_learn_the_bundles_own_images_are_run(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "carried by the bundle" in draw_inputs(Digits(mixed), None, 0).name


def test_given_data_is_drawn_in_an_order_of_the_seed(mixed: Made) -> None:
    bundle = Bundle(mixed.path)
    first, again, other = (draw_inputs(bundle, mixed.data, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    assert first.labels is not None
    assert np.array_equal(np.sort(first.labels), np.sort(mixed.data.labels))


def test_no_more_are_drawn_than_a_bench_runs(mixed: Made) -> None:
    many = np.zeros((MAX_INPUTS + 5, 8, 8, 3), np.uint8)
    data = Dataset(many, np.zeros(len(many), np.int64), (), "many")
    assert len(draw_inputs(Bundle(mixed.path), data, 0).images) == MAX_INPUTS


def test_a_negative_seed(mixed: Made) -> None:
    with refuses(UsageError, "seed -1"):
        draw_inputs(Bundle(mixed.path), None, -1)
