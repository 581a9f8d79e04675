"""The curve in the terminal."""

from __future__ import annotations

import math

from tailor.runs.report.textplot import curve, sparkline

FALLING = [(step, 100 - step) for step in range(101)]


def test_a_falling_line_falls_from_the_top_left_to_the_bottom_right() -> None:
    lines = curve(FALLING, width=20, height=5, unicode=False)
    rows = [line.partition("|")[2] for line in lines[:5]]
    assert [row.index("*") for row in rows] == sorted(row.index("*") for row in rows)
    assert rows[0].startswith("*")
    assert rows[-1].endswith("*")
    assert len(rows[-1]) == 20
    rising = curve([(x, -y) for x, y in FALLING], width=20, height=5, unicode=False)
    assert rising[0].endswith("*")  # control


def test_the_ranges_are_written_at_the_axes() -> None:
    lines = curve(FALLING, width=30, height=4)
    assert lines[0].startswith("100 │")
    assert lines[3].startswith("  0 │")
    assert lines[-1].split() == ["0", "100"]


def test_values_that_are_not_finite_are_left_out_and_nothing_is_drawn_of_one_point() -> None:
    assert curve([(1, math.nan), (2, 1.0)]) == []
    assert curve([(1, 2.0), (2, math.inf), (3, 1.0)]) == curve([(1, 2.0), (3, 1.0)])
    assert curve([(1, 1.0), (2, 1.0)])  # a flat line has no range to divide by


def test_a_long_series_fits_the_sparkline() -> None:
    line = sparkline(list(range(1000)), width=10)
    assert len(line) == 10
    assert list(line) == sorted(line)
    assert sparkline([1.0]) == ""
