"""The accuracy of timed cases, and the choice of a dynamic case that another half of the images judges."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dfs_deploy.bench.accuracy import contest, scored
from dfs_deploy.bench.clock import case_result
from dfs_deploy.bench.result import CaseResult, Round
from dfs_deploy.bench.verdict import Evidence
from tests.bench.made import exactly, ratios_of

BUDGETS = {f"dfs-budget-{90 - 8 * step}": drop for step, drop in enumerate(np.linspace(0.0, 0.04, 10))}
"""Ten budgets by what they truly lose, each faster than the one before and than the static network."""

RUNS = 150


def timed() -> list[CaseResult]:
    ms = {"static-fp32": 3.0, "dfs": 2.0, **{name: 1.9 - 0.1 * step for step, name in enumerate(BUDGETS)}}
    return [case_result(name, 1, [round(1e6 * each)] * 300) for name, each in ms.items()]


def drawn(seed: int, images: int = 1024, apart: float = 0.05) -> dict[str, NDArray[np.bool_]]:
    """Right answers: every dynamic case differs from the static one on a share of the images, by chance."""
    random = np.random.default_rng(seed)
    static = random.random(images) < 0.9
    right = {"static-fp32": static}
    for name, drop in {"dfs": 0.0, **BUDGETS}.items():
        chance = random.random(images)
        right[name] = np.where(static, chance >= (apart + drop) / 2 / 0.9, chance < (apart - drop) / 2 / 0.1)
    return right


def test_the_verdict_is_the_same_over_draws_of_images() -> None:
    """Some dynamic case is as accurate and faster, so to ship it is right; a choice that just suffices would not do."""
    cases, choices = timed(), []
    for seed in range(RUNS):
        judged = contest(cases, drawn(seed), 0.01)
        over = [ratios_of("static-fp32", exactly(0.6), exactly(0.6))]
        found = Evidence(
            judged.cases,
            over,
            Round(16),
            1024,
            0.01,
            contender=judged.contender,
            chosen_from=judged.chosen_from,
            sufficed=judged.sufficed,
            best=judged.best,
        )
        choices.append(found.verdict().choice)
    assert sum(str(choice).startswith("dfs") for choice in choices) >= 0.8 * RUNS


def test_more_images_let_a_cheaper_case_be_chosen() -> None:
    """With them the margin shrinks: what loses less than is allowed is chosen, and not what loses more."""
    cases = timed()
    chosen = [contest(cases, drawn(seed, images=60_000), 0.02).contender for seed in range(10)]
    losses = [BUDGETS[name] for name in chosen]
    assert min(losses) > 0.01
    assert max(losses) < 0.02


def test_one_half_names_the_contender_and_the_most_accurate_case_and_the_other_scores() -> None:
    """On the choosing half the static network knows most, on the judging half the cheaper budget does."""
    cases = [case_result(name, 1, [10**6] * 300) for name in ("static-fp32", "dfs", "dfs-budget-10")]
    choosing = {"static-fp32": 1.0, "dfs": 0.99, "dfs-budget-10": 0.5}
    judging = {"static-fp32": 0.8, "dfs": 0.8, "dfs-budget-10": 1.0}
    right = {}
    for name in choosing:
        right[name] = np.empty(400, np.bool_)
        right[name][0::2], right[name][1::2] = (np.arange(200) < 200 * each[name] for each in (choosing, judging))
    found = contest(cases, right, 0.02)
    assert (found.contender, found.chosen_from, found.best) == ("dfs", 2, "static-fp32")
    assert found.sufficed
    strict = contest(cases, right, 0.0)
    assert (strict.contender, strict.sufficed) == ("dfs", False), "none is accurate enough: the most accurate"
    assert {case.name: case.top1 for case in found.cases} == pytest.approx(judging)
    below = {case.name: case.top1_below_best for case in found.cases}
    assert below["dfs-budget-10"] is not None
    assert below["dfs-budget-10"].value == pytest.approx(0.2), "measured by the case that the other half named"


def test_a_single_dynamic_case_is_judged_by_all_images() -> None:
    cases = [case for case in timed() if not case.name.startswith("dfs-")]
    right = {name: each for name, each in drawn(0).items() if not name.startswith("dfs-")}
    found = contest(cases, right, 0.01)
    assert (found.contender, found.chosen_from, found.best) == ("dfs", 1, None)
    assert found.cases == scored(cases, right)
    assert contest(timed(), {}, 0.01).cases == tuple(timed()), "no labels"
