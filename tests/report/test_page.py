from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace as replace_struct

from dfs_deploy.bench.result import Problem
from dfs_deploy.report import BundleReport, Report, render_page
from dfs_deploy.report.charts import frontier
from dfs_deploy.report.page import FORMATS, frontier_caption, latency_caption

HOSTILE = '</script><script>alert(1)</script><!--<img src=x onerror="alert(2)">'


class Page(HTMLParser):
    """What a reader without scripts gets: numbers with their places, text, scripts, addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str, str]] = []
        self.text: list[str] = []
        self.choices: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [given[name] or "" for name in ("src", "href", "srcset", "action") if name in given]
        if tag not in ("meta", "link", "img", "input"):
            self._open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1][0] == tag, f"</{tag}> closes <{self._open[-1][0]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        tag, given = self._open[-1] if self._open else ("", {})
        if tag == "script":
            self.scripts.append((given, data))
        elif tag == "data":
            self.numbers.append((given["data-at"] or "", given["data-kind"] or "", given["value"] or "", data))
        elif tag == "option":
            self.choices.append(data)
        elif tag != "style":
            self.text.append(data)

    def script(self, name: str) -> Any:
        """The JSON of a script element by its id."""
        (text,) = [text for given, text in self.scripts if given.get("id") == name]
        return json.loads(text)


def at(value: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.fixture(scope="module")
def page(report_of_two: Report) -> Page:
    return Page(render_page(report_of_two))


def test_the_page_embeds_exactly_the_json(report_of_two: Report, page: Page) -> None:
    assert page.script("report") == json.loads(json.dumps(report_of_two.as_json()))


def test_every_number_is_found_in_the_json(page: Page) -> None:
    value = page.script("report")
    assert len(page.numbers) > 200
    for place, kind, given, shown in page.numbers:
        assert json.loads(given) == at(value, place), place
        assert shown == FORMATS[kind](at(value, place)), place


def test_no_number_stands_outside(report_of_two: Report, page: Page) -> None:
    """What holds a digit elsewhere is text of the report itself: names, digests, notes."""
    texts = set(strings(report_of_two.as_json()))
    groups = {str(decision.group) for bundle in report_of_two.bundles for decision in bundle.decisions}
    assert set(page.choices) <= texts | groups | {"all"}
    for text in filter(re.compile(r"\d").search, page.text):
        rest = text
        for known in sorted(texts, key=len, reverse=True):
            rest = rest.replace(known, "")
        rest = rest.replace("float32", "").replace("top-1", "").replace("th percentile", "").replace("SHA-256", "")
        numbers = re.findall(r"\d+", rest)
        assert set(numbers) <= {"95", "99"}, text


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [text for item in value for text in strings(item)] if isinstance(value, (list, tuple)) else []


def test_nothing_is_asked_of_a_network(page: Page) -> None:
    assert all(address.startswith(("data:", "#")) for address in page.addresses), page.addresses
    assert not {"iframe", "object", "embed", "video", "audio", "base"} & set(page.tags)


def test_every_chart_has_its_rows(page: Page, report_of_two: Report) -> None:
    html = render_page(report_of_two)
    value, specs = page.script("report"), page.script("charts")
    figures = re.findall(r'<figure data-chart="([^"]+)" data-rows="([^"]+)"', html)
    assert {name.partition("-")[0] for name, _ in figures} >= {"frontier", "decisions", "tree", "times", "errors"}
    for name, pointer in figures:
        rows = at(value, pointer.replace("*", "0"))
        assert rows, pointer
        assert "rows" in [data["name"] for data in specs[name]["data"]]
        assert not any(data.get("values") for data in specs[name]["data"]), "a chart holds no data of its own"


def test_names_cannot_change_the_page(one: BundleReport) -> None:
    """A bundle's names are another's text: wherever they stand, they stay text."""
    sound = render_page(Report("0", "now", (one,)))
    facts = replace(one.facts, name=HOSTILE, checkpoint=HOSTILE, calibration_data=HOSTILE)
    examples = tuple(replace(example, label=HOSTILE, answer=HOSTILE) for example in one.examples)
    frontier = tuple(replace(point, bundle=HOSTILE) for point in one.frontier)
    hostile = replace(
        one,
        facts=facts,
        examples=examples,
        frontier=frontier,
        outcome=replace(one.outcome, data=HOSTILE),
        paths=tuple(replace(path) for path in one.paths),
    )
    html = render_page(Report("0", "now", (hostile, one)))
    page = Page(html)
    assert "onerror=" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL).replace("onerror=&#34;", "")
    assert page.tags.count("script") == Page(sound).tags.count("script")
    assert page.script("report")["bundles"][0]["facts"]["name"] == HOSTILE
    assert any(HOSTILE in text for text in page.text)


MOVING = "a\x1b[31m\u202ecat\nerror: forged\x00\udce9"


def test_what_is_no_visible_character_reaches_neither_page_nor_json(one: BundleReport) -> None:
    """Charts show names in tooltips and on axes, which no template escapes."""
    bench = replace_struct(
        one.bench, data=MOVING, verdict=replace_struct(one.bench.verdict, words=MOVING, caveats=(MOVING,))
    )
    hostile = replace(
        one,
        facts=replace(one.facts, name=MOVING, checkpoint=MOVING),
        frontier=tuple(replace(point, bundle=MOVING) for point in one.frontier),
        examples=tuple(replace(example, label=MOVING, answer=MOVING) for example in one.examples),
        outcome=replace(one.outcome, data=MOVING),
        bench=bench,
    )
    report = Report("0", "now", (hostile,))
    assert all(text.isprintable() for text in strings(report.as_json()))
    html = render_page(report)
    html.encode()
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "a\\x1b[31m\\u202ecat\\nerror: forged\\x00\\xe9" in shown
    assert not {"\x1b", "\u202e", "\x00", "\udce9"} & set(html)
    assert [example.image for example in one.examples] == [
        example["image"] for example in report.as_json()["bundles"][0]["examples"]
    ], "a picture is not cut"


@pytest.mark.parametrize("name", ["</script>", "<!--<script>", "\u2028"])
def test_the_json_in_the_page_cannot_end_its_element(one: BundleReport, name: str) -> None:
    hostile = replace(one, facts=replace(one.facts, name=name, checkpoint=name))
    page = Page(render_page(Report("0", "now", (hostile,))))
    shown = page.script("report")["bundles"][0]["facts"]["checkpoint"]
    assert shown == (name if name.isprintable() else "\\u2028")
    assert page.tags.count("script") == Page(render_page(Report("0", "now", (one,)))).tags.count("script")


# What the captions say


def test_a_caption_tells_what_the_chart_shows_and_nothing_else(one: BundleReport) -> None:
    dfs, fp32, *_ = one.frontier
    plain = [replace(point, p50_ms=1.0, p95_ms=1.1) for point in (dfs, fp32)]
    assert "budget" not in frontier_caption(plain)
    assert "Hollow" in frontier_caption(plain)
    assert "Arrow" not in frontier_caption(plain) + latency_caption(plain)
    budget = replace(dfs, kind="budget", name="dfs-budget-20", p50_ms=1.0, p95_ms=1.1)
    assert "budgets, timed in the same rounds" in frontier_caption([*plain, budget])
    assert "budget" not in frontier_caption([*plain, replace(budget, top1=None)]), "it is not drawn"
    far = replace(fp32, p50_ms=1.0, p95_ms=9.0)
    assert "Arrow at the edge" in frontier_caption([dfs, far])
    assert "Arrow at the edge" in latency_caption([far])
    assert "Hollow" not in frontier_caption([dfs])


def test_points_of_one_bundle_differ_in_colour_shape_and_size(one: BundleReport) -> None:
    (layer,) = [layer for layer in frontier(one.frontier)["layer"] if layer["mark"].get("filled") is False]
    for channel in ("color", "shape", "size"):
        scale = layer["encoding"][channel]["scale"]
        assert scale["domain"] == ["dfs", "static-fp32", "static-fp16", "static-int8"]
        assert len(set(scale["range"])) == 4, channel


def test_cases_of_other_bundles_and_of_newer_versions_are_drawn(one: BundleReport) -> None:
    dfs, fp32, *_ = one.frontier
    points = [dfs, fp32, replace(fp32, name="static-fp32@plain"), replace(fp32, name="static-int4")]
    domain = frontier(points)["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert domain == ["dfs", "static-fp32", "static-int4", "static-fp32@plain"]


def test_an_invalid_bench_may_have_a_verdict_by_accuracy_alone(one: BundleReport) -> None:
    verdict = replace_struct(one.bench.verdict, choice="static-fp32", words="ship static FP32: DFS loses")
    bench = replace_struct(one.bench, valid=False, problems=(Problem("shaky", "wait"),), verdict=verdict)
    text = " ".join(Page(render_page(Report("0", "now", (replace(one, bench=bench),)))).text)
    assert "is INVALID, so none of its ratios is shown" in text
    assert "shown and there is no verdict" not in text
    assert "ship static FP32: DFS loses" in text
    assert "the time of the dynamic network" not in text


def test_the_policy_lets_the_pages_own_scripts_run_and_nothing_else(report_of_one: Report) -> None:
    html = render_page(report_of_one)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe-inline", policy)
    assert policy.count("sha256-") == 2


def test_a_report_of_one_bundle_has_no_choice_of_bundles(report_of_one: Report) -> None:
    html = render_page(report_of_one)
    assert "data-bundle=" not in html
    assert "<noscript>" in html


def test_unknown_figures_are_a_dash(unlabelled: BundleReport) -> None:
    html = render_page(Report("0", "now", (unlabelled,)))
    assert 'class="unknown"' in html
    assert "No labels were given" in html
    assert "None" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def valid(one: BundleReport) -> BundleReport:
    """The same report, of a bench that can be relied on."""
    return replace(one, bench=replace_struct(one.bench, valid=True, problems=()))


def test_the_verdict_of_the_bench_leads(one: BundleReport) -> None:
    assert one.bench.verdict.words in " ".join(Page(render_page(Report("0", "now", (valid(one),)))).text)


def test_each_figure_comes_with_its_own_inputs(one: BundleReport) -> None:
    """Top-1 and computation are of the report's inputs, times of the bench's."""
    other = replace(one, bench=replace_struct(one.bench, inputs=7), outcome=replace(one.outcome, top1=0.125))
    html = render_page(Report("0", "now", (other,)))
    tiles = html.partition('<dl class="tiles">')[2].partition("</dl>")[0]
    plain = re.sub(r"<[^>]+>", " ", tiles)
    assert re.search(r"top-1 on\s+96\s+inputs\s+12\.50 %", plain), plain
    assert re.search(r"median latency on\s+7\s+inputs of the bench", plain), plain


def test_a_bench_of_another_plan_or_layout_is_told(one: BundleReport) -> None:
    line = "plan: none in the bench, measured now"
    html = render_page(Report("0", "now", (replace(one, bench_differs=(line,)),)))
    assert line in html
    assert line not in render_page(Report("0", "now", (one,)))


def test_an_invalid_bench_is_called_so(one: BundleReport) -> None:
    problem = Problem("two inputs, expected eight", "give more images")
    for sound in (True, False):
        bench = replace_struct(one.bench, valid=sound, problems=() if sound else (problem,))
        text = " ".join(Page(render_page(Report("0", "now", (replace(one, bench=bench),)))).text)
        assert ("is INVALID, so none of its ratios" in text) != sound
        assert ("the time of the dynamic network" in text) == sound
        assert ("two inputs, expected eight; give more images" in text) != sound


def test_the_page_is_small(report_of_two: Report) -> None:
    assert len(render_page(report_of_two).encode()) < 2_000_000
