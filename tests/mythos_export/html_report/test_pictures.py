"""Pictures by their numbers: where each point, bar and cell stands."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mythos_export.html_report.pictures.axes import linear_scale, log_scale, spread, strided, thinned
from mythos_export.html_report.pictures.heat_map import LEVELS, Cell, HeatMap, heat_map, level_of
from mythos_export.html_report.pictures.histogram import histogram
from mythos_export.html_report.pictures.house import Storey, house
from mythos_export.html_report.pictures.line_chart import Bound, LineChart, Series, line_chart

TIMES_N = "\N{MULTIPLICATION SIGN}n"
positive = st.floats(min_value=1e-300, max_value=1e300)


def parts(picture: str, tag: str, class_: str | None = None) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(picture).iter(tag) if class_ is None or each.get("class") == class_]


def points(picture: str, series: int) -> list[tuple[float, float]]:
    """Where the markers of a series stand."""
    marks = [each.get("transform", "") for each in parts(picture, "path", f"p s{series}")]
    found = [re.fullmatch(r"translate\((\S+) (\S+)\)", mark) for mark in marks]
    drawn = [(float(each[1]), float(each[2])) for each in found if each]
    return drawn[1:]  # the first stands in the legend


def texts(picture: str) -> list[str]:
    return [each.text or "" for each in parts(picture, "text")]


class TestAxes:
    def test_a_linear_scale_begins_at_nothing(self) -> None:
        scale = linear_scale([3.0, 7.4], 100.0, 0.0)
        assert scale.marks == (0, 2, 4, 6, 8)
        assert [scale.at(value) for value in (0, 2, 8)] == [100, 75, 0]

    def test_a_logarithmic_scale_gives_each_power_of_ten_the_same_room(self) -> None:
        scale = log_scale([2e-7, 5e-4], 100.0, 0.0)
        assert scale.marks == pytest.approx((1e-7, 1e-6, 1e-5, 1e-4, 1e-3))
        assert [scale.at(value) for value in (1e-7, 1e-5, 1e-3)] == pytest.approx([100, 50, 0])
        assert scale.at(math.sqrt(1e-7 * 1e-6)) == pytest.approx(87.5)

    def test_within_two_powers_of_ten_it_begins_near_the_least(self) -> None:
        assert log_scale([3.6, 30.4], 0, 1).marks == (2, 5, 10, 20, 50)

    def test_nothing_stands_at_the_lower_edge(self) -> None:
        scale = log_scale([0.0, 1e-4, 1e-1], 100.0, 0.0)
        assert scale.at(0.0) == 100

    @given(st.lists(st.floats(min_value=0, max_value=1e308)), st.booleans())
    def test_every_number_has_a_place(self, values: list[float], log: bool) -> None:
        scale = (log_scale if log else linear_scale)(values, 100.0, 0.0)
        assert len(scale.marks) >= 2
        for value in [*values, *scale.marks]:
            assert 0 <= scale.at(value) <= 100

    @given(st.lists(positive, min_size=2, unique=True), st.booleans())
    def test_larger_numbers_stand_higher(self, values: list[float], log: bool) -> None:
        scale = (log_scale if log else linear_scale)(values, 100.0, 0.0)
        places = [scale.at(value) for value in sorted(values)]
        assert places == sorted(places, reverse=True)

    def test_steps(self) -> None:
        assert spread(4, 0.0, 8.0) == [1, 3, 5, 7]
        assert strided(18, 16) == [1, 3, 5, 7, 9, 11, 13, 15, 17]
        assert strided(128, 12) == [15, 31, 47, 63, 79, 95, 111, 127]
        assert strided(3, 16) == [0, 1, 2]
        assert thinned(128, 40)[0] == 0 and thinned(128, 40)[-1] == 127 and len(thinned(128, 40)) == 40


class TestLines:
    chart = LineChart(
        name="errors",
        steps=["1", "2", "4"],
        series=[Series("one", [1e-7, None, 1e-5]), Series("two", [None, 1e-6, None], joined=False)],
        below="loops",
        log=True,
        bound=Bound("tolerance 1e-4", 1e-4),
    )

    def test_points_stand_where_their_numbers_say(self) -> None:
        picture = line_chart(self.chart)
        (first, low), (last, high) = points(picture, 0)
        ((middle, between),) = points(picture, 1)
        assert middle == pytest.approx((first + last) / 2, abs=0.11)
        assert between == pytest.approx((low + high) / 2, abs=0.11), "1e-6 is halfway from 1e-7 to 1e-5"
        (bound,) = parts(picture, "path", "bound")
        top = float(re.findall(r"[\d.]+", bound.get("d", ""))[1])
        assert low - top == pytest.approx(3 * (low - between), abs=0.2), "the tolerance is three powers of ten up"

    def test_a_gap_is_not_bridged_by_a_point(self) -> None:
        picture = line_chart(self.chart)
        (line,) = parts(picture, "path", "l s0")
        assert line.get("d", "").count("L") == 1
        assert not parts(picture, "path", "l s1"), "lone points are not joined"

    def test_everything_has_a_name(self) -> None:
        picture = line_chart(self.chart)
        assert ElementTree.fromstring(picture).get("aria-label") == "errors"
        assert {"one", "two", "loops", "1", "2", "4", "tolerance 1e-4", "1e\N{MINUS SIGN}7"} <= set(texts(picture))

    def test_of_many_steps_some_are_named_and_none_is_a_caterpillar(self) -> None:
        steps = [str(depth) for depth in range(1, 129)]
        picture = line_chart(LineChart("x", steps, [Series("a", [1.0] * 128)], "depth"))
        assert len(points(picture, 0)) == 0
        (line,) = parts(picture, "path", "l s0")
        assert line.get("d", "").count("L") == 127, "the line is whole"
        assert len([text for text in texts(picture) if text in steps]) <= 20

    def test_of_a_long_name_both_ends_are_there(self) -> None:
        names = [f"open-mythos 0.5.0, torch 2.13.0, past 1024, {threads} threads" for threads in (1, 2)]
        found = texts(line_chart(LineChart("x", ["1"], [Series(name, [1.0]) for name in names], "loops")))
        shown = [text for text in found if text.startswith("open-mythos 0.5… ")]
        assert [text[-20:] for text in shown] == [f"past 1024, {threads} threads" for threads in (1, 2)]

    def test_an_interval_is_a_whisker_around_its_point(self) -> None:
        series = Series("a", [2.0, 3.0], intervals=[(1.0, 4.0), None])
        picture = line_chart(LineChart("x", ["1", "2"], [series], "loops"))
        (whisker,) = parts(picture, "path", "w s0")
        x, low, high = map(float, re.findall(r"-?[\d.]+", whisker.get("d", ""))[:3])
        (at, middle), _ = points(picture, 0)
        assert x == at
        assert low - middle == pytest.approx((middle - high) / 2, abs=0.2), "1 is as far below 2 as 3 is above it"

    def test_no_values_no_lines(self) -> None:
        picture = line_chart(LineChart("x", ["1"], [Series("a", [None])], "depth"))
        assert not parts(picture, "path", "l s0")


class TestHeat:
    @pytest.mark.parametrize(
        ("value", "level"), [(1e-9, 0), (1e-7, 0), (1e-4, LEVELS - 1), (1e-2, LEVELS - 1), (None, 0), (math.nan, 0)]
    )
    def test_shades_go_from_pale_to_deep(self, value: float | None, level: int) -> None:
        assert level_of(value, 1e-7, 1e-4, log=True) == level

    def test_shades_may_go_downward(self) -> None:
        assert [level_of(share, 1.0, 0.5) for share in (1.0, 0.9, 0.75, 0.5, 0.0)] == [0, 1, 4, 8, 8]

    def test_each_cell_is_in_its_row_and_column_and_says_its_number(self) -> None:
        picture = heat_map(
            HeatMap("x", ["1", "2"], ["1", "2"], [[Cell(0, "a"), Cell(8, "b")], [None, Cell(4, "c")]], "loops", "depth")
        )
        cells = {
            each.get("class"): (float(each.get("x", 0)), float(each.get("y", 0))) for each in parts(picture, "rect")
        }
        assert cells["h0"][1] == cells["h8"][1] < cells["h4"][1]
        assert cells["h0"][0] < cells["h8"][0] == cells["h4"][0]
        assert [text for text in texts(picture) if text in "abc"] == ["a", "b", "c"]

    def test_of_very_many_rows_it_draws_some(self) -> None:
        rows = [str(row) for row in range(1, 1001)]
        picture = heat_map(HeatMap("x", ["1"], rows, [[Cell(0, "a")]] * 1000, "loops", "depth"))
        drawn = [text for text in texts(picture) if text.isdigit()]
        assert len(parts(picture, "rect")) == len(drawn) - 1 == 32
        assert drawn[1:3] == ["1", "32"], "behind the column's own label"


def test_bars_are_as_high_as_their_counts() -> None:
    picture = histogram("x", ["1", "2", "3", "4"], [2, 0, 8, 4], "depth")
    heights = [float(each.get("height", 0)) for each in parts(picture, "rect", "bar")]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01) == pytest.approx(2 * heights[2], rel=0.01)
    assert {"2", "8", "4"} <= set(texts(picture))


def test_a_house_stands_in_order_and_only_the_loop_has_an_arrow_around_it() -> None:
    storeys = [Storey("Prelude", ("a",), 0.25), Storey("Loop", ("b", "c"), 0.5, TIMES_N), Storey("Coda", ("d",), 0.25)]
    picture = house("x", storeys)
    tops = [float(each.get("y", 0)) for each in parts(picture, "rect") if "storey" in (each.get("class") or "")]
    assert tops == sorted(tops) and len(tops) == 3
    assert len(parts(picture, "rect", "storey loop")) == 1 and texts(picture).count(TIMES_N) == 1
    shares = [float(each.get("width", 0)) for each in parts(picture, "rect", "bar")]
    assert shares[1] == pytest.approx(2 * shares[0], abs=0.2) == pytest.approx(2 * shares[2], abs=0.2)
