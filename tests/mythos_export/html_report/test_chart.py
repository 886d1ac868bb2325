"""Charts by their numbers: where each point, mark and line stands."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mythos_export.html_report.chart import Chart, Series, draw, linear_scale, log_scale

positive = st.floats(min_value=1e-300, max_value=1e300)


class TestScales:
    def test_a_linear_scale_begins_at_nothing(self) -> None:
        scale = linear_scale([3.0, 7.4], 100.0, 0.0)
        assert scale.marks == (0, 2, 4, 6, 8)
        assert [scale.at(value) for value in (0, 2, 8)] == [100, 75, 0]

    def test_a_logarithmic_scale_gives_each_power_of_ten_the_same_room(self) -> None:
        scale = log_scale([2e-7, 5e-4], 100.0, 0.0)
        assert scale.marks == pytest.approx((1e-7, 1e-6, 1e-5, 1e-4, 1e-3))
        assert [scale.at(value) for value in (1e-7, 1e-5, 1e-3)] == pytest.approx([100, 50, 0])
        assert scale.at(math.sqrt(1e-7 * 1e-6)) == pytest.approx(87.5)
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


class TestLines:
    chart = Chart(
        name="errors",
        steps=["1", "2", "4"],
        series=[Series("one", [1e-7, None, 1e-5]), Series("two", [None, 1e-6, math.nan])],
        below="loops",
        log=True,
        bound=("tolerance 1e-4", 1e-4),
    )

    def test_points_stand_where_their_numbers_say(self) -> None:
        drawing = draw(self.chart)
        (_, first, low), (_, last, high), (line, middle, between) = drawing.points
        assert line == 1 and middle == pytest.approx((first + last) / 2)
        assert between == pytest.approx((low + high) / 2), "1e-6 is halfway from 1e-7 to 1e-5"
        assert drawing.bound is not None
        assert low - drawing.bound[1] == pytest.approx(3 * (low - between)), "the tolerance: three powers of ten up"

    def test_a_gap_is_bridged_and_a_lone_point_is_not_joined(self) -> None:
        ((line, path),) = draw(self.chart).lines
        assert line == 0 and path.count("L") == 1

    def test_everything_has_a_name(self) -> None:
        drawing = draw(self.chart)
        assert [name for *_, name in drawing.legend] == ["one", "two"]
        assert [text for _, text in drawing.ticks] == ["1", "2", "4"]
        assert "1e\N{MINUS SIGN}7" in [text for _, text in drawing.marks]

    def test_of_many_steps_some_are_named_and_no_marker_overlaps(self) -> None:
        steps = [str(depth) for depth in range(1, 129)]
        drawing = draw(Chart("x", steps, [Series("a", [1.0] * 128)], "depth"))
        assert not drawing.points
        assert drawing.lines[0][1].count("L") == 127, "the line is whole"
        assert 5 < len(drawing.ticks) <= 20

    def test_of_a_long_name_both_ends_are_there(self) -> None:
        names = [f"open-mythos 0.5.0, torch 2.13.0, past 1024, {threads} threads" for threads in (1, 2)]
        drawing = draw(Chart("x", ["1"], [Series(name, [1.0]) for name in names], "loops"))
        shown = [name for *_, name in drawing.legend]
        assert all(name.startswith("open-mythos 0.5… ") for name in shown)
        assert [name[-20:] for name in shown] == [f"past 1024, {threads} threads" for threads in (1, 2)]

    def test_an_interval_is_a_whisker_around_its_point(self) -> None:
        drawing = draw(Chart("x", ["1", "2"], [Series("a", [2.0, 3.0], [(1.0, 4.0), None])], "loops"))
        ((_, whisker),) = drawing.whiskers
        x, low, high = map(float, re.findall(r"-?[\d.]+", whisker)[:3])
        _, at, middle = drawing.points[0]
        assert x == pytest.approx(at, abs=0.06)
        assert low - middle == pytest.approx((middle - high) / 2, abs=0.2), "1 is as far below 2 as 3 is above it"

    @pytest.mark.parametrize("values", [[], [None], [math.nan], [math.inf]])
    def test_no_values_no_lines(self, values: list[float | None]) -> None:
        drawing = draw(Chart("x", ["1"], [Series("a", values)], "depth", log=True))
        assert not drawing.lines and not drawing.points
