"""Plot a curve as text: 2 × 4 dots per character (braille), or asterisks on a terminal without Unicode."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Point = tuple[float, float]

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of each dot of a braille cell, by column, then by row from the top."""


def curve(points: Sequence[Point], *, width: int = 60, height: int = 8, unicode: bool = True) -> list[str]:
    """The plot as lines of text, with the range of y on the left and the range of x below.

    Points that are not finite are skipped. Empty if fewer than two points remain.
    """
    points = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    if len(points) < 2:
        return []
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    across, down = (2, 4) if unicode else (1, 1)
    columns, rows = width * across, height * down
    grid = [[False] * columns for _ in range(rows)]

    def dot_of(point: Point) -> tuple[int, int]:
        column = round((point[0] - left) / ((right - left) or 1) * (columns - 1))
        row = round((high - point[1]) / ((high - low) or 1) * (rows - 1))
        return column, row

    for (x0, y0), (x1, y1) in itertools.pairwise([dot_of(point) for point in sorted(points)]):
        dots = max(abs(x1 - x0), abs(y1 - y0), 1)
        for dot in range(dots + 1):
            grid[round(y0 + (y1 - y0) * dot / dots)][round(x0 + (x1 - x0) * dot / dots)] = True

    cells = _braille(grid) if unicode else ["".join("*" if dot else " " for dot in row) for row in grid]
    labels = ["" for _ in cells]
    labels[0], labels[-1] = _number(high), _number(low)
    gutter = max(len(label) for label in labels)
    bar, corner, line = ("│", "└", "─") if unicode else ("|", "+", "-")
    lines = [f"{label:>{gutter}} {bar}{cell}".rstrip() for label, cell in zip(labels, cells, strict=True)]
    lines.append(" " * gutter + f" {corner}" + line * width)
    ends = f"{left:g}", f"{right:g}"
    lines.append(" " * (gutter + 2) + ends[0] + ends[1].rjust(width - len(ends[0])))
    return lines


def sparkline(values: Sequence[float], *, width: int = 24) -> str:
    """All values as one line of bars. More values than `width` are averaged in equal parts."""
    values = [value for value in values if value is not None and math.isfinite(value)]
    if len(values) > width:
        edges = [round(index * len(values) / width) for index in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) / ((high - low) or 1) * 7)] for value in values)


def _braille(grid: list[list[bool]]) -> list[str]:
    lines = []
    for top in range(0, len(grid), 4):
        cells = [0] * (len(grid[0]) // 2)
        for row in range(4):
            for column, dot in enumerate(grid[top + row]):
                if dot:
                    cells[column // 2] |= DOTS[column % 2][row]
        lines.append("".join(chr(0x2800 + cell) if cell else " " for cell in cells))
    return lines


def _number(value: float) -> str:
    return f"{value:.3g}"
