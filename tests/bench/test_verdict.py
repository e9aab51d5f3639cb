from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.bench.clock import case_result
from dfs_deploy.bench.result import BenchResult, Problem, Round, Verdict
from dfs_deploy.bench.verdict import Evidence, choose_contender, compare, times, title
from dfs_deploy.paired import Interval
from dfs_deploy.thresholds import MAX_UNCERTAINTY, TIE
from tests.bench.made import exactly, made_bench, ratios_of

SURE = {"dfs": 0.95, "static-fp32": 0.95, "static-fp16": 0.95, "static-int8": 0.95}


def verdict(
    p50: Mapping[str, float],
    p95: Mapping[str, float] | None = None,
    top1: Mapping[str, float] | None = SURE,
    width: float = 0.005,
    drop: float = 0.01,
    tail_width: float | None = None,
    problems: Sequence[Problem] = (),
    **how: Any,
) -> Verdict:
    """Of cases that take so many ms at the median and at p95, whose ratios are known to a share of themselves."""
    tail_width = width if tail_width is None else tail_width
    p95 = p50 if p95 is None else p95
    cases = [
        case_result(name, 1, [round(1e6 * ms)] * 300, top1=None if top1 is None else top1[name])
        for name, ms in p50.items()
    ]
    ours = how.get("contender", "dfs")
    over = [
        ratios_of(name, exactly(p50[ours] / p50[name], width), exactly(p95[ours] / p95[name], tail_width))
        for name in p50
        if name.startswith("static")
    ]
    return Evidence(cases, over, Round(16), 100, drop, tuple(problems), **how).verdict()


def evidence(result: BenchResult) -> Evidence:
    """What the verdict of a bench rests on."""
    return Evidence(result.cases, result.over_static, result.round, result.inputs)


def test_the_dynamic_network_is_shipped_where_it_is_fastest_and_accurate() -> None:
    found = verdict({"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.4})
    assert found.choice == "dfs"
    for word in ("ship DFS", "static INT8", "1.40x faster at the median", "1.40x faster at p95", "95.00 %"):
        assert word in found.words, word


def test_a_faster_static_engine_that_is_accurate_enough_is_shipped_instead() -> None:
    found = verdict({"dfs": 1.3, "static-fp32": 3.0, "static-int8": 1.0})
    assert found.choice == "static-int8"
    for word in ("ship static INT8", "accurate enough", "1.30x slower at the median"):
        assert word in found.words, word


def test_a_static_engine_that_loses_too_much_is_no_rival() -> None:
    found = verdict({"dfs": 1.3, "static-fp32": 3.0, "static-int8": 1.0}, top1={**SURE, "static-int8": 0.93})
    assert found.choice == "dfs"
    assert "static FP32" in found.words


def test_the_floor_itself_is_allowed_and_can_be_moved() -> None:
    p50 = {"dfs": 1.3, "static-fp32": 3.0, "static-int8": 1.0}
    assert verdict(p50, top1={**SURE, "static-int8": 0.94}).choice == "static-int8"
    assert verdict(p50, top1={**SURE, "static-int8": 0.94}, drop=0.005).choice == "dfs"


def test_a_dynamic_network_that_loses_too_much_is_not_shipped_however_fast() -> None:
    found = verdict({"dfs": 0.1, "static-fp32": 3.0, "static-int8": 1.0}, top1={**SURE, "dfs": 0.90})
    assert found.choice == "static-int8"
    assert "DFS loses 5.00 points" in found.words
    assert "1.00 allowed" in found.words


def test_a_tie_goes_to_the_simpler_one() -> None:
    found = verdict({"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.0})
    assert found.choice == "static-int8"
    assert "gains nothing" in found.words


def test_median_and_tail_that_disagree_leave_the_choice_to_the_user() -> None:
    p50 = {"dfs": 0.8, "static-fp32": 3.0, "static-int8": 1.0}
    found = verdict(p50, {**p50, "dfs": 1.5, "static-int8": 1.1})
    assert found.choice is None
    assert found.words.startswith("DFS if the median counts")
    found = verdict({**p50, "dfs": 1.2}, {**p50, "dfs": 0.9, "static-int8": 1.1})
    assert found.choice is None
    assert found.words.startswith("static INT8 if the median counts")


def test_one_that_ties_and_one_that_does_not_decide_together() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.0}
    assert verdict(p50, {**p50, "dfs": 1.2}).choice == "static-int8"
    assert verdict(p50, {**p50, "dfs": 0.8}).choice == "dfs"


def test_without_labels_only_what_is_slower_than_the_reference_can_be_told() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 2.0, "static-int8": 1.5}
    found = verdict(p50, top1=None)
    assert found.choice is None
    for word in ("no labels", "2.00x faster against static FP32", "--data"):
        assert word in found.words, word
    found = verdict({**p50, "dfs": 2.5}, top1=None)
    assert found.choice == "static-fp32"
    assert "1.25x slower" in found.words


def test_an_invalid_run_decides_nothing_about_latency() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.4}
    assert verdict(p50).choice == "dfs"
    for top1 in (SURE, None):
        found = verdict(p50, top1=top1, problems=[Problem("it rained", "wait")])
        assert found.choice is None
        assert "INVALID" in found.words


def test_accuracy_decides_without_a_clock() -> None:
    """What loses too much is out however the times lie, unless there are too few images to tell."""
    p50, top1 = {"dfs": 1.0, "static-fp32": 3.0}, {**SURE, "dfs": 0.90}
    found = verdict(p50, top1=top1, problems=[Problem("it rained", "wait")])
    assert found.choice == "static-fp32"
    assert "DFS loses 5.00 points" in found.words
    assert verdict(p50, top1=top1, problems=[Problem("two images", "more", "inputs")]).choice is None


def test_a_static_engine_that_nobody_would_ship_is_no_rival() -> None:
    """The backbone of a network whose blocks are skipped as a rule is worth nothing with every block run."""
    p50, top1 = {"dfs": 1.0, "static-fp32": 1.9, "static-int8": 1.77}, {"dfs": 0.583, "static-fp32": 0.1562}
    found = verdict(p50, top1={**top1, "static-int8": 0.1601})
    assert found.choice is None
    told = ("static INT8 has a top-1 of 16.01 %", "58.30 % of DFS", "nobody would ship", "bench BUNDLE STATIC")
    for word in ("none: ", *told):
        assert word in found.words, word
    assert verdict(p50, top1={**top1, "static-fp32": 0.574, "static-int8": 0.1}).choice == "dfs", "within the drop"


@pytest.mark.parametrize(("rival_ms", "choice"), [(0.5, "static-int8@plain"), (1.5, "dfs")])
def test_a_network_that_was_trained_to_be_static_is_a_rival(rival_ms: float, choice: str) -> None:
    p50 = {"dfs": 1.0, "static-fp32": 1.9, "static-fp32@plain": 2.0, "static-int8@plain": rival_ms}
    top1 = {"dfs": 0.76, "static-fp32": 0.16, "static-fp32@plain": 0.766, "static-int8@plain": 0.765}
    found = verdict(p50, top1=top1)
    assert found.choice == choice
    assert "static INT8 of plain" in found.words


def test_a_rival_that_is_more_accurate_decides_without_a_clock() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 1.9, "static-fp32@plain": 2.0}
    found = verdict(p50, top1={"dfs": 0.583, "static-fp32": 0.16, "static-fp32@plain": 0.766})
    assert found.choice == "static-fp32@plain"
    assert "18.30 points" in found.words


def test_a_dynamic_network_that_no_rival_comes_near_is_shipped_and_its_time_is_told() -> None:
    p50 = {"dfs": 3.0, "static-fp32": 1.9, "static-fp32@plain": 2.0}
    found = verdict(p50, top1={"dfs": 0.80, "static-fp32": 0.16, "static-fp32@plain": 0.766})
    assert found.choice == "dfs"
    for word in ("no static network comes within 1.00 points", "static FP32 of plain", "76.60 %", "1.50x its time"):
        assert word in found.words, word


def test_of_static_engines_that_are_as_fast_the_most_precise_is_shipped() -> None:
    p50 = {"dfs": 1.3, "static-fp32": 1.001, "static-fp16": 1.0, "static-int8": 1.5}
    assert verdict(p50).choice == "static-fp32"
    assert verdict({**p50, "static-fp32": 1.05}).choice == "static-fp16"


def test_a_tail_that_is_not_known_leaves_the_choice_to_the_median_and_is_a_caveat() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.4}
    found = verdict(p50, {**p50, "dfs": 1.5}, tail_width=0.4)
    assert found.choice == "dfs"
    assert "p95" not in found.words
    (caveat,) = found.caveats
    for word in ("p95 is not known", "between 0.64x and 1.50x", "--max-seconds"):
        assert word in caveat, word


def test_what_is_known_beforehand_is_a_caveat_of_every_verdict() -> None:
    for result in (made_bench(), made_bench({"dfs": 1.0}), made_bench(rounds=2)):
        assert evidence(result).verdict(caveats=["it rained"]).caveats == ("it rained",)


def test_without_a_static_engine_there_is_nothing_to_compare_with() -> None:
    found = made_bench({"dfs": 1.0}).verdict
    assert found.choice is None
    assert "--targets" in found.words


def test_a_device_without_static_engines_is_not_told_to_export_for_a_cpu() -> None:
    found = evidence(made_bench({"dfs": 1.0})).verdict("jetson")
    assert found.choice is None
    assert "none on jetson" in found.words
    assert "--targets" not in found.words


def test_too_few_calls_for_a_tail_are_a_caveat() -> None:
    result = made_bench(rounds=8, top1=dict.fromkeys(("dfs", "static-fp32", "static-int8"), 0.9))
    assert result.verdict.choice == "dfs"
    assert any("too few calls to compare p95" in line for line in result.verdict.caveats)
    assert "p95" not in result.verdict.words


def test_an_accuracy_that_the_images_cannot_tell_is_a_caveat() -> None:
    times = [1_000_000] * 300
    cases = [
        case_result("dfs", 1, times, top1=0.945, top1_below_best=Interval(-0.005, -0.02, 0.01)),
        case_result("static-fp32", 1, times, top1=0.95, top1_below_best=Interval(0.0, 0.0, 0.0)),
    ]
    over = [ratios_of("static-fp32", exactly(0.5), exactly(0.5))]
    found = Evidence(cases, over, Round(16), 100).verdict()
    assert found.choice == "dfs"
    (caveat,) = found.caveats
    for word in ("DFS", "-0.50 points", "-2.00 to +1.00", "1.00"):
        assert word in caveat, word


def test_a_loss_that_may_be_chance_is_called_so_in_the_verdict_too() -> None:
    times = [1_000_000] * 300

    def lost(low: float, high: float) -> Verdict:
        cases = [
            case_result("dfs", 1, times, top1=0.93, top1_below_best=Interval(-0.02, low, high)),
            case_result("static-fp32", 1, times, top1=0.95, top1_below_best=Interval(0.0, 0.0, 0.0)),
        ]
        over = [ratios_of("static-fp32", exactly(0.5), exactly(0.5))]
        return Evidence(cases, over, Round(16), 100).verdict()

    unsure, sure = lost(-0.045, 0.005), lost(-0.025, -0.015)
    assert unsure.choice == sure.choice == "static-fp32"
    assert "may be chance" in unsure.words
    assert sum("on others like them" in line for line in unsure.caveats) == 1
    assert "chance" not in sure.words
    assert not any("on others like them" in line for line in sure.caveats)


@given(st.floats(0.1, 10.0), st.floats(0.0, 0.3))
def test_only_what_another_run_would_read_alike_is_known(value: float, width: float) -> None:
    """The line between a dynamic network that gains something and one that gains nothing lies at 1 - TIE."""
    ratio = exactly(value, width)
    found = compare(ratio)
    assert (found == "faster") == (ratio.high < 1.0 - TIE)
    assert (found == "unknown") == (ratio.low <= 1.0 - TIE <= ratio.high)
    assert (found == "slower") == (found not in ("faster", "unknown") and ratio.low > 1.0 and value >= 1.0 + TIE)
    words = {"faster": "faster", "slower": "slower", "tie": "as fast", "unknown": "between"}
    shown = "unknown" if found == "tie" and ratio.uncertainty > MAX_UNCERTAINTY else found
    assert words[shown] in times(ratio)


# Several networks

FIELD = {
    "dfs": 1.02,
    "static-fp32": 2.4,
    "static-int8": 1.55,
    "static-int8@twin": 1.53,
    "static-policy@pruned-3": 1.38,
    "static-policy@pruned-9": 0.93,
    "dfs@skipnet": 1.7,
    "dfs-budget-40": 0.8,
}
FOUND = dict(zip(FIELD, (0.882, 0.86, 0.855, 0.885, 0.881, 0.859, 0.871, 0.87), strict=True))


def test_the_verdict_names_the_best_static_network_and_the_static_int8_one() -> None:
    found = verdict(FIELD, top1=FOUND)
    assert found.choice == "dfs"
    assert found.words.startswith("ship DFS: 1.50x faster at the median than static INT8 of twin at equal accuracy;")
    for word in ("the best static network of equal accuracy is pruned-3 at 1.38 ms", "at 1.02 ms", "1.35x faster"):
        assert word in found.words, word


def test_a_pruned_network_that_is_faster_at_equal_accuracy_wins() -> None:
    found = verdict(FIELD, top1={**FOUND, "static-policy@pruned-9": 0.88})
    assert found.choice == "static-policy@pruned-9"
    assert found.words.startswith("ship pruned-9: accurate enough at 0.93 ms, and DFS is 1.10x slower at the median")
    assert "1.53 ms" in found.words, "what static INT8 takes is told, too"


def test_another_dynamic_network_may_be_the_one_that_is_judged() -> None:
    found = verdict({**FIELD, "dfs@skipnet": 0.7}, top1={**FOUND, "dfs@skipnet": 0.881}, contender="dfs@skipnet")
    assert found.choice == "dfs@skipnet"
    assert "ship skipnet: " in found.words


def test_a_network_that_loses_too_much_is_set_against_static_ones_of_its_accuracy() -> None:
    found = verdict(FIELD, top1={**FOUND, "dfs": 0.865})
    assert found.choice == "static-policy@pruned-3"
    assert "DFS loses 2.00 points" in found.words
    (line,) = [line for line in found.caveats if line.startswith("at the accuracy of DFS (86.50 %)")]
    assert "pruned-9, at 0.93 ms" in line
    assert "1.10x slower" in line


def test_how_one_was_chosen_of_several_is_told() -> None:
    (line,) = [line for line in verdict(FIELD, top1=FOUND, chosen_from=3).caveats if "was chosen of" in line]
    assert "DFS was chosen of 3 dynamic cases by one half" in line
    assert "as the fastest that is accurate enough there" in line
    assert "as the most accurate" not in line
    caveats = verdict(FIELD, top1=FOUND, chosen_from=3, sufficed=False).caveats
    (line,) = [line for line in caveats if "was chosen of" in line]
    assert "as the most accurate, since none is accurate enough there" in line
    assert "fastest" not in line
    assert not any("was chosen of" in line for line in verdict(FIELD, top1=FOUND).caveats)


def test_to_beat_the_own_backbone_alone_is_a_caveat() -> None:
    p50 = {"dfs": 1.0, "static-fp32": 3.0, "static-int8": 1.4}
    (line,) = verdict(p50, gated=True).caveats
    assert "trained for the gate's paths" in line
    assert not verdict(p50).caveats
    assert not verdict({**p50, "static-int8@twin": 1.4}, top1={**SURE, "static-int8@twin": 0.95}, gated=True).caveats, (
        "a real twin was beaten"
    )
    assert not verdict({**p50, "dfs": 2.0}, gated=True).caveats, "it was not beaten"


def chosen(p50: Mapping[str, float], top1: Mapping[str, float], drop: float = 0.01) -> str:
    return choose_contender(
        [case_result(name, 1, [round(1e6 * ms)] * 20, top1=top1[name]) for name, ms in p50.items()], drop
    )[0]


def test_the_fastest_dynamic_case_that_is_accurate_enough_is_chosen() -> None:
    assert chosen(FIELD, FOUND) == "dfs"
    assert chosen(FIELD, FOUND, drop=0.02) == "dfs-budget-40"
    assert chosen({**FIELD, "dfs-budget-40": 1.01}, {**FOUND, "dfs-budget-40": 0.882}) == "dfs", "as fast, named first"
    assert chosen(FIELD, {**FOUND, "static-int8@twin": 0.95}) == "dfs", "none is: the most accurate"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dfs", "DFS"),
        ("dfs@skipnet", "skipnet"),
        ("dfs-budget-62.5", "DFS at budget 62.5 %"),
        ("dfs-budget-20@other", "other at budget 20 %"),
        ("static-int8", "static INT8"),
        ("static-fp32@plain", "static FP32 of plain"),
        ("static-policy@pruned-5", "pruned-5"),
    ],
)
def test_a_case_in_words(name: str, words: str) -> None:
    assert title(case_result(name, 1, [10**6] * 20)) == words


def test_a_wide_interval_that_decides_is_enough_and_a_narrow_one_on_the_line_is_not() -> None:
    assert compare(Interval(1.04, 0.985, 1.10)) == "tie"
    assert "between 0.98x and 1.10x" in times(Interval(1.04, 0.985, 1.10))
    assert compare(Interval(0.98, 0.975, 0.985)) == "unknown"
