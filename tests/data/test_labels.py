from __future__ import annotations

import numpy as np
import pytest

from dfs_deploy.data.labels import match_labels
from dfs_deploy.errors import DataError
from tests.checks import refuses

ALL = np.arange(3)


def matched(own: tuple[str, ...], classes: int, network: tuple[str, ...] = ()) -> list[int]:
    labels = match_labels(np.arange(len(own)), own, classes, network, "data").labels
    return [int(label) for label in labels]


def test_names_decide_if_both_sides_have_them() -> None:
    assert matched(("cat", "dog"), 4, ("bird", "dog", "cat", "eel")) == [2, 1]
    assert matched(("cat", "dog"), 2, ("cat", "dog")) == [0, 1]


def test_numbers_decide_if_the_network_has_no_names() -> None:
    assert matched(("0", "1", "2"), 3) == [0, 1, 2]
    assert matched(("0", "1", "10", "11", "2"), 12) == [0, 1, 10, 11, 2]
    assert matched(("003", "007"), 10) == [3, 7]
    assert match_labels(ALL[:2], ("3", "7"), 10, (), "data").class_names == ()


def test_a_number_beyond_the_network_is_refused() -> None:
    with refuses(DataError, "data has a class 10,", "0 to 9", "from 0"):
        matched(tuple(map(str, range(1, 11))), 10)


def test_numbers_match_names_that_are_numbers() -> None:
    assert matched(("00", "02"), 3, ("0", "1", "2")) == [0, 2]
    assert matched(("7", "007"), 2, ("007", "7")) == [1, 0]


def test_letters_match_however_their_accents_are_stored() -> None:
    assert matched(("cafe\u0301", "tea"), 2, ("tea", "caf\xe9")) == [1, 0]


def test_every_class_that_the_network_does_not_know_is_said() -> None:
    with refuses(DataError, "data has 2 of 3 classes", "dog, eel", "expected cat"):
        matched(("cat", "dog", "eel"), 1, ("cat",))
    with refuses(DataError, r"caf\xe9"):
        matched(("caf\udce9", "tea"), 2, ("tea", "milk"))


def test_a_name_that_two_classes_have_decides_nothing() -> None:
    network = ("crane", "maillot", "crane")
    assert matched(network, 3, network) == [0, 1, 2]
    assert matched(("maillot",), 3, network) == [1]
    for own in (("crane",), ("maillot", "maillot")):
        with refuses(DataError, "two classes with the name"):
            matched(own, 3, network)


def test_an_order_that_is_assumed_is_said() -> None:
    found = match_labels(ALL[:2], ("cat", "dog"), 10, (), "data")
    assert found.note is not None
    assert "no names for its 10 classes" in found.note
    assert "0 = cat, 1 = dog" in found.note
    assert found.class_names == ("cat", "dog")
    for own, network in ((("cat", "dog"), ("dog", "cat")), ((), ("dog", "cat")), (("0", "1"), ()), ((), ())):
        assert match_labels(ALL[:2], own, 2, network, "data").note is None


@pytest.mark.parametrize("network", [(), ("a", "b")])
def test_a_label_beyond_the_network_is_refused(network: tuple[str, ...]) -> None:
    with refuses(DataError, "data has label 2", "0 to 1"):
        match_labels(ALL, (), 2, network, "data")
