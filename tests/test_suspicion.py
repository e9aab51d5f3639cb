from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from dfs_deploy.suspicion import CERTAINTY, suspicions


def drawn(count: int, classes: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, classes, count)


def with_top1(labels: NDArray[np.int64], classes: int, right: int) -> NDArray[np.int64]:
    """Predictions of which exactly so many are right, the others of any wrong class."""
    wrong = (labels + np.random.default_rng(1).integers(1, classes, len(labels))) % classes
    return np.where(np.arange(len(labels)) < right, labels, wrong)


def test_a_network_that_is_always_right_is_never_suspicious() -> None:
    for classes in (2, 10, 100, 1000):
        for count in (1, 2, 5, 16, 100, 10_000):
            labels = drawn(count, classes)
            assert suspicions(labels, labels, classes) == ()


@pytest.mark.parametrize(("classes", "count"), [(2, 200), (10, 100), (100, 200), (1000, 200)])
def test_guesses_are_called_chance(classes: int, count: int) -> None:
    (line,) = suspicions(drawn(count, classes), drawn(count, classes, 1), classes)
    assert "hardly better than chance" in line
    assert "another order" in line
    assert "normalisation" in line


def test_few_images_say_nothing() -> None:
    for classes in (2, 10, 100):
        for count in (1, 2, 4):
            labels = drawn(count, classes)
            assert suspicions(labels, (labels + 1) % classes, classes) == ()


@pytest.mark.parametrize(("classes", "useful"), [(2, 0.6), (10, 0.2), (1000, 0.051)])
@pytest.mark.parametrize("count", [50, 20_000])
def test_chance_is_told_by_an_exact_test(classes: int, useful: float, count: int) -> None:
    """A network as good as a useful one is warned about in at most 1 % of draws, and the bound is the greatest such."""
    bound = int(binom.ppf(CERTAINTY, count, useful))
    while binom.cdf(bound, count, useful) > CERTAINTY:
        bound -= 1
    labels = drawn(count, classes)
    if bound >= 0:
        assert suspicions(labels, with_top1(labels, classes, bound), classes) != ()
    assert suspicions(labels, with_top1(labels, classes, bound + 1), classes) == ()


def test_labels_in_another_order_are_named() -> None:
    """As folders 0 to 99 are, if they are numbered as text: 0, 1, 10, 11, ..."""
    labels = drawn(10_000, 100)
    order = np.argsort([str(number) for number in range(100)])
    (line,) = suspicions(labels, order[labels], 100, [f"name {number}" for number in range(100)])
    assert "top-1 of 1" in line  # some numbers keep their place: far above chance, and wrong all the same
    assert "another order" in line
    label = int(line.partition("class ")[2].split()[0])
    assert f"class {order[label]} (name {order[label]})" in line


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_weak_network_is_not_taken_for_another_order(classes: int) -> None:
    labels = drawn(max(50, 8 * classes), classes)
    for share in (0.4, 0.5, 0.9):
        found = suspicions(labels, with_top1(labels, classes, int(share * len(labels))), classes)
        assert not any("numbered" in line for line in found)


def test_every_image_in_one_class_is_said() -> None:
    labels = drawn(100, 10)
    one, chance = suspicions(labels, np.full(100, 7), 10, "abcdefghij")
    assert "every one of 100 images is classified as class 7 (h)" in one
    assert "hardly better than chance" in chance
    assert "order" not in one
    (alone,) = suspicions(None, np.full(20, 3), 10)
    assert "class 3:" in alone


def test_images_of_one_class_may_be_classified_as_one() -> None:
    assert suspicions(np.full(100, 7), np.full(100, 7), 10) == ()
    assert suspicions(None, drawn(20, 3), 10) == ()
    assert suspicions(None, np.zeros(5, np.int64), 10) == ()
    assert suspicions(np.zeros(0, np.int64), np.zeros(0, np.int64), 10) == ()


def test_names_from_outside_are_shown_on_one_line() -> None:
    (line,) = suspicions(None, np.zeros(20, np.int64), 2, ["a\n\x1b[2J", "b"])
    assert "\n" not in line
    assert r"\x1b" in line
