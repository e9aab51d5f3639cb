from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dfs_deploy.report.labels import Label, Spot, place_labels, text_width

WIDTH, HEIGHT = 400.0, 300.0


def covers(one: Label, other: Label) -> bool:
    left, top, right, bottom = one.box
    return left < other.box[2] and other.box[0] < right and top < other.box[3] and other.box[1] < bottom


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=14, unique=True),
    st.text("abcXY3 ", min_size=1, max_size=8),
)
def test_labels_of_points_that_leave_room_cover_nothing_and_stay_inside(
    cells: list[tuple[int, int]], text: str
) -> None:
    points = [(50.0 * across, 30.0 * down) for across, down in cells]
    labels = place_labels([Spot(text, point, "black") for point in points], points, WIDTH, HEIGHT)
    assert [label.anchor for label in labels] == points
    for label in labels:
        left, top, right, bottom = label.box
        assert 0 <= left <= right <= WIDTH
        assert 0 <= top <= bottom <= HEIGHT
        assert not any(left < x < right and top < y < bottom for x, y in points)


def test_labels_of_a_crowd_do_not_cover_each_other() -> None:
    points = [(200.0 + 9 * i, 150.0 - 4 * i) for i in range(6)]
    labels = place_labels([Spot(f"net-{i}", point, "black") for i, point in enumerate(points)], points, WIDTH, HEIGHT)
    assert len(labels) == 6
    assert not any(covers(one, other) for one, other in itertools.combinations(labels, 2))
    assert any(label.far for label in labels), "some stand apart, joined by a line"


def test_a_label_keeps_off_lines() -> None:
    spot, beside = Spot("net", (100.0, 100.0), "black"), ((100.0, 100.0), (300.0, 100.0))
    (free,) = place_labels([spot], [spot.anchor], WIDTH, HEIGHT)
    (moved,) = place_labels([spot], [spot.anchor], WIDTH, HEIGHT, [beside])
    assert free.box[0] > 100.0
    assert moved.box[2] < 100.0


def test_wide_letters_take_more_room() -> None:
    assert text_width("WWW") > text_width("AAA") > text_width("aaa") > text_width("iii")
