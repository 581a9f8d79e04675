"""Plots of long-context evaluations: a heat map of needle retrieval by length and depth, and the loss by position."""

from __future__ import annotations

import io
from typing import Any

from tailor.runs.evaluations import COLORS
from tailor.runs.report.plots import GRID, INK

PERPLEXITY = "long_perplexity.png"
SHADES = " ░▒▓█"
"""Characters for rates from 0 to 1."""


def pictures(results: dict[str, Any]) -> dict[str, bytes]:
    """File name -> PNG, for each long-context task in an evaluation's results.json."""
    plots = {f"{task}.png": draw_grid(task, grid) for task, grid in results.get("grids", {}).items()}
    if results.get("positions"):
        plots[PERPLEXITY] = draw_positions(results["positions"])
    return plots


def lines(task: str, grid: dict[str, Any], *, unicode: bool = True) -> list[str]:
    """The heat map as text: a block per model, a line per length, a cell per depth with the rate in percent."""
    depths, lengths = grid["depths"], grid["lengths"]
    gutter = max(len(f"{length:,}") for length in (*lengths, 100_000)) + 1
    text = []
    for model, shares in grid["models"].items():
        text.append(f"{task}: % correct of {model} (rows: length in tokens, columns: depth)")
        text.append(" " * gutter + "".join(f"{depth:>8g}" for depth in depths))
        for length, row in zip(lengths, shares, strict=True):
            cells = (f"{_shade(share) if unicode else '':>4}{100 * share:>4.0f}" for share in row)
            text.append(f"{length:>{gutter},}" + "".join(cells))
    return text


def _shade(share: float) -> str:
    return SHADES[round(share * (len(SHADES) - 1))] * 2


def draw_grid(task: str, grid: dict[str, Any]) -> bytes:
    """The heat map as PNG: one panel per model, lengths on the x-axis, depths on the y-axis, green for correct.

    A cell has its rate in percent and, below it, its confidence interval.
    """
    intervals = grid.get("intervals", {})
    row_height = 0.5 if intervals else 0.36
    figure, panels = _figure(
        len(grid["models"]),
        height=1.6 + row_height * len(grid["depths"]),
        width=max(4, 1.6 + 0.62 * len(grid["lengths"])),
    )
    for axes, (model, shares) in zip(panels, grid["models"].items(), strict=True):
        across = [[row[at] for row in shares] for at in range(len(grid["depths"]))]
        image = axes.imshow(across, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(across):
            for x, share in enumerate(row):
                ink = "white" if abs(share - 0.5) > 0.35 else INK  # both ends of the color scale are dark
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
                if model in intervals:
                    low, high = intervals[model][x][y]
                    text = f"{100 * low:.0f}\N{EN DASH}{100 * high:.0f}"
                    axes.text(x, y + 0.32, text, ha="center", va="center", color=ink, fontsize=5.5)
        axes.set_xticks(range(len(grid["lengths"])), [f"{length:,}" for length in grid["lengths"]])
        axes.set_yticks(range(len(grid["depths"])), [f"{depth:g}" for depth in grid["depths"]])
        axes.set_title(model, fontsize=9, color=INK)
        axes.set_xlabel("length in tokens", color=INK)
        axes.tick_params(colors=INK, labelsize=8)
    panels[0].set_ylabel("depth", color=INK)
    figure.colorbar(image, ax=list(panels), label=f"{task} accuracy", shrink=0.9)
    return _png(figure)


def draw_positions(positions: dict[str, Any]) -> bytes:
    """A PNG of the mean loss by position in the longest window, one curve per model."""
    figure, (axes,) = _figure(1, height=3.6)
    for number, (model, loss) in enumerate(positions["models"].items()):
        points = [
            (end, value) for end, value in zip(positions["ends"], loss, strict=True) if value is not None
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=model, color=COLORS[number % 6])
    axes.set_xlabel("position in the window (tokens)", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return _png(figure)


def _figure(panels: int, height: float, width: float = 4) -> tuple[Any, Any]:
    """A figure with panels side by side. height, width: of a panel, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8, width * panels), height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
