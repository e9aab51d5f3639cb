"""The page as a reader's browser shows it. Without a browser these are skipped, and where CI is set they fail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium.webdriver.common.keys import Keys

from dfs_deploy.report import BundleReport, Report, render_page
from dfs_deploy.report.page import FORMATS
from tests.report.browser import Browser, browser, missing
from tests.report.test_page import at

SECTION = "#bundle-0 "


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def file(report_of_two: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(render_page(report_of_two), "utf-8")
    return page


@pytest.fixture
def page(chromium: Browser, file: Path) -> Browser:
    chromium.open(file)
    return chromium


def rows(page: Browser, chart: str) -> list[dict[str, Any]]:
    """What a chart is drawn from, without what Vega adds."""
    script = "return document.querySelector(`figure[data-chart='${arguments[0]}']`).view.data('rows')"
    found: list[dict[str, Any]] = page(script, chart)
    return found


def marks(page: Browser, chart: str, kind: str) -> list[dict[str, Any]]:
    """The marks of a kind that a chart draws: each with its row and where it lies, and the height of the plot."""
    return page(
        """
        const view = document.querySelector(`figure[data-chart='${arguments[0]}']`).view;
        const found = [];
        const visit = (item) => {
          if (item.marktype === arguments[1] && item.role === "mark")
            for (const mark of item.items)
              found.push({...mark.datum, x: mark.x, y: mark.y, tall: mark.height, plot: view.height()});
          for (const child of item.items ?? []) visit(child);
        };
        visit(view.scenegraph().root);
        return found;
        """,
        chart,
        kind,
    )


def test_opens_without_a_complaint_and_asks_for_nothing(chromium: Browser, file: Path) -> None:
    chromium.open(file)
    console, asked = chromium.logs()
    assert console == []
    assert asked[0] == file.as_uri()
    assert all(address.startswith(("data:", file.as_uri())) for address in asked), asked
    assert chromium("return document.querySelectorAll('figure[data-chart]').length") == chromium(
        "return document.querySelectorAll('figure[data-chart] svg').length"
    )


@pytest.mark.parametrize(("scheme", "rules"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
def test_accessible(chromium: Browser, file: Path, scheme: str, rules: dict[str, list[str]]) -> None:
    """Labels, contrast, roles, headings and scrolling by keyboard, as axe-core judges them."""
    chromium.open(file, scheme=scheme)
    chromium("for (const details of document.querySelectorAll('details')) details.open = true;")
    alike = [["tbody tr:nth-child(n+3)"], [".examples li:nth-child(n+2)"]]  # one is as another, and axe is slow
    result = Axe().run(chromium.driver, {"exclude": alike}, rules)
    assert "color-contrast" in {rule["id"] for rule in result["passes"]}
    found = [f"{rule['id']}: {node['html'][:300]}" for rule in result["violations"] for node in rule["nodes"][:3]]
    assert not found, "\n".join(found)


def test_every_number_shown_equals_the_json(page: Browser, report_of_two: Report) -> None:
    value = value_of(report_of_two.as_json())
    shown = page(
        "return [...document.querySelectorAll('data')].map(d => [d.dataset.at, d.dataset.kind, d.textContent])"
    )
    assert len(shown) > 200
    for place, kind, text in shown:
        assert text == FORMATS[kind](at(value, place)), place
    assert page("return JSON.parse(document.getElementById('report').textContent)") == value


def value_of(value: Any) -> Any:
    """A JSON value as it comes back from the browser: lists for tuples."""
    if isinstance(value, dict):
        return {key: value_of(item) for key, item in value.items()}
    return [value_of(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("chart", ["decisions", "tree", "times", "errors"])
def test_a_chart_holds_the_rows_of_the_json(page: Browser, report_of_two: Report, chart: str) -> None:
    bundle = report_of_two.as_json()["bundles"][0]
    wanted = bundle["engines" if chart in ("times", "errors") else chart]
    found = rows(page, f"{chart}-0")
    assert [{key: row[key] for key in wanted[0]} for row in found] == value_of(wanted)


def test_bars_are_as_high_as_the_shares(page: Browser) -> None:
    bars = marks(page, "decisions-0", "rect")
    assert {(bar["block"], bar["option"]) for bar in bars} == {
        (row["block"], row["option"]) for row in rows(page, "decisions-0")
    }
    for bar in bars:
        assert math.isclose(bar["tall"], bar["share"] * bar["plot"], abs_tol=1e-6), bar


def test_points_lie_where_the_figures_say(page: Browser) -> None:
    points = [mark for mark in marks(page, "frontier", "symbol") if not mark.get("beyond")]
    assert {point["name"] for point in points} >= {"dfs", "static-fp32", "static-int8"}
    for first in points:
        for second in points:
            assert (first["p50_ms"] - second["p50_ms"]) * (first["x"] - second["x"]) >= 0, "further right is slower"
            assert (first["top1"] - second["top1"]) * (first["y"] - second["y"]) <= 0, "higher is more accurate"


def test_a_tail_beyond_the_axis_has_an_arrow_at_its_end(chromium: Browser, one: BundleReport, tmp_path: Path) -> None:
    first, second, *rest = one.frontier
    points = (replace(first, p95_ms=99 * first.p50_ms), replace(second, p95_ms=second.p50_ms), *rest)
    file = tmp_path / "tail.html"
    file.write_text(render_page(Report("0", "now", (replace(one, frontier=points),))), "utf-8")
    chromium.open(file)
    drawn = marks(chromium, "frontier", "symbol")
    wide = chromium("return document.querySelector('figure[data-chart=frontier]').view.width()")
    arrows = [mark for mark in drawn if mark.get("beyond")]
    assert first.name in {arrow["name"] for arrow in arrows}
    assert second.name not in {arrow["name"] for arrow in arrows}
    assert all(wide - 12 < arrow["x"] <= wide for arrow in arrows)
    assert "Arrow at the edge" in chromium("return document.querySelector('figcaption').textContent")


def test_points_that_lie_on_each_other_can_all_be_seen(chromium: Browser, one: BundleReport, tmp_path: Path) -> None:
    """FP16 runs as FP32 on a CPU without it: the same accuracy and the same time."""
    dfs, fp32, fp16, int8 = one.frontier
    same = tuple(replace(point, p50_ms=1.0, p95_ms=1.1, top1=0.9) for point in (fp32, fp16, int8))
    file = tmp_path / "same.html"
    file.write_text(render_page(Report("0", "now", (replace(one, frontier=(dfs, *same)),))), "utf-8")
    chromium.open(file)
    drawn = chromium(
        "return [...document.querySelectorAll('figure[data-chart=frontier] .mark-symbol.role-mark path')]"
        ".map(path => [getComputedStyle(path).fill, getComputedStyle(path).stroke, path.getBBox().width])"
    )
    hollow = [(stroke, wide) for fill, stroke, wide in drawn if fill in ("none", "rgba(0, 0, 0, 0)")]
    assert len(hollow) == 3
    assert len({stroke for stroke, _ in hollow}) == 3, "each in a colour of its own"
    assert len({round(wide) for _, wide in hollow}) == 3, "none covers another"


def choose(page: Browser, field: str, value: str) -> None:
    page(
        """
        const select = document.querySelector(`${arguments[0]} select[data-field="${arguments[1]}"]`);
        select.value = arguments[2];
        select.dispatchEvent(new Event("change", {bubbles: true}));
        """,
        SECTION,
        field,
        value,
    )
    page.settled()


def listed(page: Browser, field: str) -> list[str]:
    """A field of the table rows of the first bundle that can be seen and have it."""
    return page(
        "return [...document.querySelectorAll(`${arguments[0]} tbody tr[data-${arguments[1]}]`)]"
        ".filter(row => !row.hidden).map(row => row.dataset[arguments[1]])",
        SECTION,
        field,
    )


@pytest.mark.parametrize(
    ("field", "value", "charts"),
    [
        ("group", "2", ["decisions-0", "tree-0", "times-0", "errors-0"]),
        ("option", "8", ["decisions-0", "tree-0", "times-0", "errors-0"]),
        ("precision", "int8", ["times-0", "errors-0"]),
    ],
)
def test_a_filter_leaves_what_it_names(page: Browser, field: str, value: str, charts: list[str]) -> None:
    before = {chart: rows(page, chart) for chart in charts}
    other = rows(page, "decisions-1")
    choose(page, field, value)
    assert set(listed(page, field)) == {value}
    for chart in charts:
        left = [row for row in before[chart] if str(row[field]) == value]
        assert 0 < len(left) < len(before[chart])
        assert rows(page, chart) == left
        kind = "rect" if chart.partition("-")[0] in ("decisions", "tree") else "symbol"
        assert {str(mark[field]) for mark in marks(page, chart, kind)} == {value}
    assert rows(page, "decisions-1") == other, "the filters of a bundle are its own"
    page.driver.find_element("css selector", SECTION + "button[type=reset]").send_keys(Keys.ENTER)
    page.settled()
    assert {chart: rows(page, chart) for chart in charts} == before
    assert len(set(listed(page, field))) > 1
    assert page.logs()[0] == []


def test_a_filter_that_leaves_nothing_is_no_error(page: Browser) -> None:
    choose(page, "option", "skip")
    choose(page, "precision", "int8")
    assert rows(page, "errors-0") == []
    assert page.logs()[0] == []


def test_a_bundle_can_be_left_out(page: Browser, report_of_two: Report) -> None:
    page.driver.find_element("css selector", "input[data-section=bundle-1]").click()
    page.settled()
    assert page("return document.getElementById('bundle-1').hidden")
    assert not page("return document.getElementById('bundle-0').hidden")
    assert {row["bundle"] for row in rows(page, "frontier")} == {report_of_two.bundles[0].facts.name}


def test_tables_sort_by_keyboard(page: Browser) -> None:
    inputs = (
        "return [...document.querySelectorAll(`${arguments[0]} table.sortable`)]"
        ".find(t => t.caption.textContent.startsWith('Hottest')).querySelectorAll(arguments[1])"
    )
    cells = page(inputs, SECTION, "tbody td:nth-child(5) data")
    costs = [float(cell.get_attribute("value")) for cell in cells]
    button = page(inputs, SECTION, "thead th:nth-child(5) button")[0]
    button.send_keys(Keys.ENTER)
    for wanted, order in ((sorted(costs), "ascending"), (sorted(costs, reverse=True), "descending")):
        cells = page(inputs, SECTION, "tbody td:nth-child(5) data")
        assert [float(cell.get_attribute("value")) for cell in cells] == wanted
        assert page(inputs, SECTION, "thead th:nth-child(5)")[0].get_attribute("aria-sort") == order
        button.send_keys(Keys.SPACE)


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(page: Browser) -> None:
    body = page.driver.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    seen: list[str] = []
    for _ in range(60):
        name, focused, outline = page(
            "const e = document.activeElement;"
            "const name = e.tagName + (e.dataset.field ?? '');"
            "return [name, e.matches(':focus-visible'), getComputedStyle(e).outlineStyle]"
        )
        seen.append(name)
        assert (focused, outline) != (True, "none"), name
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert {"A", "INPUT", "BUTTON", "SUMMARY", "SELECTgroup", "SELECToption", "SELECTprecision"} <= set(seen)


def test_dark_on_a_dark_system(chromium: Browser, file: Path) -> None:
    page = "return getComputedStyle(document.body).backgroundColor"
    ink = "return getComputedStyle(document.querySelector('figure .mark-text text')).fill"
    colors = {}
    for scheme in ("light", "dark"):
        chromium.open(file, scheme=scheme)
        colors[scheme] = chromium(page), chromium(ink)
    assert colors["light"][0] != colors["dark"][0]
    assert colors["light"][1] != colors["dark"][1], "the charts follow"


def test_on_paper(chromium: Browser, file: Path) -> None:
    """Light even from a dark system, every table open, nothing wider than the sheet."""
    chromium.open(file, scheme="dark", width=720)
    chromium.media("print", "dark")
    chromium("dispatchEvent(new Event('beforeprint'))")
    chromium.settled()
    assert chromium("return getComputedStyle(document.body).backgroundColor") in ("rgb(255, 255, 255)", "#ffffff")
    assert chromium("return document.querySelectorAll('details:not([open])').length") == 0
    hidden = "return getComputedStyle(document.querySelector('form.filters select').parentElement).display"
    assert chromium(hidden) == "none"
    chromium("dispatchEvent(new Event('afterprint'))")
    assert chromium("return document.querySelectorAll('details[open]').length") == 0


@pytest.mark.parametrize("width", [320, 400, 900])
def test_on_a_narrow_screen_only_tables_scroll(chromium: Browser, file: Path, width: int) -> None:
    chromium.open(file, width=width)
    assert chromium("return document.documentElement.scrollWidth") <= width
    tall = chromium("return [...document.querySelectorAll('table .path')].map(path => path.offsetHeight)")
    assert max(tall) < 30, "a path is one row of cells"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_caption_is_read_without_scrolling(chromium: Browser, file: Path, width: int) -> None:
    chromium.open(file, width=width)
    chromium("for (const details of document.querySelectorAll('details')) details.open = true;")
    script = (
        "return [...document.querySelectorAll('.scroll caption span')].map(e => [e.getBoundingClientRect().left,"
        " e.getBoundingClientRect().right, e.scrollWidth > e.clientWidth + 1])"
    )
    for scrolled in (0, 10_000):
        chromium(f"for (const e of document.querySelectorAll('.scroll')) e.scrollLeft = {scrolled};")
        for left, right, cut in chromium(script):
            assert left >= 0
            assert right <= width
            assert not cut


@pytest.mark.parametrize(("width", "stays"), [(390, False), (1280, True)])
def test_the_filters_stay_in_sight_where_there_is_room(chromium: Browser, file: Path, width: int, stays: bool) -> None:
    chromium.open(file, width=width)
    chromium("document.querySelector('#bundle-0 h3:last-of-type').scrollIntoView({behavior: 'instant'})")
    top = chromium("return document.querySelector('#bundle-0 form.filters').getBoundingClientRect().bottom")
    assert (top > 0) == stays


CUT = """
        return [...document.querySelectorAll("figure svg text")].filter((text) => {
          const [inner, outer] = [text, text.closest("svg")].map((e) => e.getBoundingClientRect());
          return text.textContent && (inner.left < outer.left - 1 || inner.right > outer.right + 1);
        }).map((text) => text.textContent);
        """
"""Words of charts that the edge of their chart cuts."""


@pytest.mark.parametrize("width", [400, 1200])
def test_no_word_of_a_chart_is_cut_off(chromium: Browser, file: Path, width: int) -> None:
    chromium.open(file, width=width)
    assert chromium(CUT) == []


def test_no_label_of_an_axis_is_cut_off_whatever_its_end(chromium: Browser, one: BundleReport, tmp_path: Path) -> None:
    for slowest in (0.0037, 0.037, 0.121, 0.3333, 1.0, 4.7, 37.0, 1234.0):
        frontier = tuple(
            replace(point, p50_ms=slowest * share, p95_ms=None)
            for point, share in zip(one.frontier, (1.0, 0.7, 0.5, 0.9), strict=True)
        )
        file = tmp_path / "axis.html"
        file.write_text(render_page(Report("0", "now", (replace(one, frontier=frontier),))), "utf-8")
        chromium.open(file, width=400)
        assert chromium(CUT) == [], slowest


def test_without_a_browser_it_is_skipped_and_in_ci_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no chromium on the path"):
        missing("chromium")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no chromium on the path"):
        missing("chromium")
