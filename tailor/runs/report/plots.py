"""The curves of a run as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailor.layout import LOSS_PLOT
from tailor.runs.log import Record, of_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID, MAIN, SECOND, THIRD = "#1f2933", "#e4e7eb", "#2563eb", "#ea580c", "#0f7b45"
SMOOTHED_FROM = 40
"""Minimum number of points for which a running mean is drawn over a pale raw curve."""


@dataclass(frozen=True)
class Plot:
    """One plot: PNG bytes, 8 × 3.6 inches at 150 dots per inch."""

    file: str
    title: str
    png: bytes


def draw(records: list[Record]) -> list[Plot]:
    """All curves with at least two points; none for fewer than two training steps."""
    train, evaluation = of_kind(records, "train"), of_kind(records, "evaluation")
    if len(train) < 2:
        return []
    plots = [
        _plot(LOSS_PLOT, "Loss", "loss", train, ["loss"], evaluation=evaluation),
        _plot(
            "reward_accuracy.png",
            "Reward accuracy",
            "reward accuracy",
            train,
            ["reward_accuracy"],
            evaluation=evaluation,
        ),
        _plot(
            "reward_margin.png", "Reward margin", "margin", train, ["reward_margin"], evaluation=evaluation
        ),
        _plot("learning_rate.png", "Learning rate", "learning rate", train, ["learning_rate"]),
        _plot("grad_norm.png", "Gradient norm", "L2 norm before clipping", train, ["grad_norm"]),
        _plot("router_loss.png", "Router loss (expert balance)", "router loss", train, ["router_loss"]),
        _plot(
            "tokens_per_second.png",
            "Speed",
            "tokens per second",
            train[1:],  # the first step includes the warm-up of the kernels
            ["tokens_per_second", "supervised_tokens_per_second"],
        ),
        _plot(
            "retrieval.png",
            "Retrieval",
            "recall and nDCG",
            of_kind(records, "retrieval"),
            ["recall@1", "recall@10", "ndcg@10"],
        ),
    ]
    return [plot for plot in plots if plot is not None]


def _plot(
    file: str,
    title: str,
    label: str,
    records: list[Record],
    keys: list[str],
    evaluation: Sequence[Record] = (),
) -> Plot | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = 0
    for key, color in zip(keys, (MAIN, SECOND, THIRD), strict=False):
        points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
        if len(points) < 2:
            continue
        _line(axes, points, color, key.replace("_", " "))
        drawn += 1
    if not drawn:
        return None
    held_out = [(record["step"], record[keys[0]]) for record in evaluation if record.get(keys[0]) is not None]
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            color=SECOND,
            marker="o",
            markersize=5,
            label=f"evaluation {keys[0].replace('_', ' ')}",
        )
        drawn += 1
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    _style(axes, legend=drawn > 1)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return Plot(file, title, out.getvalue())


def _line(axes: Axes, points: list[tuple[float, float]], color: str, label: str) -> None:
    steps, values = zip(*points, strict=True)
    if len(points) < SMOOTHED_FROM:
        axes.plot(steps, values, color=color, linewidth=1.8, label=label)
        return
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(steps, running_mean(list(values)), color=color, linewidth=1.8, label=label)


def running_mean(values: list[float]) -> list[float]:
    """Centered moving average over a window of 1/20 of all values."""
    half = max(1, len(values) // 40)
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(total[end] - total[start]) / (end - start) for start, end in windows]


def _style(axes: Axes, *, legend: bool) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if legend:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
