"""What a bench's result says about what was run."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from dfs_deploy.bench.result import BenchedBundle
from tests.bench.made import FACTS, made_bench

KEPT = replace(FACTS, accuracy_budget=0.005)


@pytest.mark.parametrize(
    ("bundle", "budget", "words"),
    [
        (FACTS, None, ""),
        (KEPT, None, "at its accuracy budget (at most 0.50 points of top-1 lost)"),
        (KEPT, 0.4, "at budget 40 %"),
        (KEPT, "trained", "as trained"),
    ],
)
def test_the_operating_point_of_the_network_is_told(bundle: BenchedBundle, budget: object, words: str) -> None:
    other = replace(KEPT, digest="e" * 64, name="other")
    result = made_bench(bundle=bundle, budget=budget, against=(other,))
    assert result.point_of(bundle.digest) == words
    assert "accuracy budget" in result.point_of(other.digest), "a named budget is that of the first bundle"


def test_a_bundle_of_an_older_file_has_no_accuracy_budget() -> None:
    older = msgspec.to_builtins(FACTS)
    del older["accuracy_budget"]
    assert msgspec.convert(older, BenchedBundle).point == ""
