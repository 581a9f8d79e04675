"""The curves of a run: PNG files, and SVG for the report page."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailor.layout import LOSS_PLOT
from tailor.runs.log import Record, of_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, MAIN, SECOND, THIRD = "#1f2933", "#e4e7eb", "#2563eb", "#ea580c", "#0f7b45"
SMOOTHED_FROM = 40
"""Minimum number of points for which a running mean is drawn over a pale raw curve."""
HOVERED = 300
"""Maximum number of points of a curve that show their values."""
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Series:
    """A line of a plot. points: (step, value). marked: with a dot at each point. exact: without a running mean."""

    label: str
    color: str
    points: list[tuple[float, float]]
    marked: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Plot:
    """One plot of a run's metrics by step. file: its name as PNG. label: of the vertical axis."""

    file: str
    title: str
    label: str
    series: list[Series]

    @property
    def png(self) -> bytes:
        """The plot as PNG, 8 × 3.6 inches at 150 dots per inch."""
        figure, _ = self._figure((8, 3.6), 150)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()

    def svg(self, width: float, height: float) -> str:
        """The plot as an SVG element whose points show their values under the pointer; it has no script. Size in inches."""
        import matplotlib

        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.file}):
            figure, axes = self._figure((width, height), 72)  # so that a pixel is a unit of SVG
            figure.canvas.draw()
            figure.set_layout_engine("none")  # or saving would move the axes
            dots = "".join(self._dots(one, axes, height * 72) for one in self.series)
            out = io.StringIO()
            figure.savefig(out, format="svg", dpi=72, metadata=NO_METADATA)
        text = out.getvalue()
        return text[text.index("<svg") :].replace("</svg>", f"{dots}</svg>")

    def _dots(self, series: Series, axes: Axes, height: float) -> str:
        every = -(-len(series.points) // HOVERED)
        points = series.points[::-every][::-1]  # with the last one
        circles = []
        for (step, value), (x, y) in zip(points, axes.transData.transform(points), strict=True):
            words = html.escape(f"step {step:g}\n{series.label} {value:.5g}")
            circles.append(
                f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="5"><title>{words}</title></circle>'
            )
        return f'<g class="points" fill="{series.color}">{"".join(circles)}</g>'

    def _figure(self, size: tuple[float, float], dpi: int) -> tuple[Figure, Axes]:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for one in self.series:
            _line(axes, one)
        axes.set_xlabel("step")
        axes.set_ylabel(self.label)
        _style(axes, legend=len(self.series) > 1)
        return figure, axes


def draw(records: list[Record]) -> list[Plot]:
    """All curves with at least two points; none for fewer than two training steps."""
    train, evaluation = of_kind(records, "train"), of_kind(records, "evaluation")
    if len(train) < 2:
        return []
    timed = train[1:]  # the first step includes the warm-up of the kernels
    rates = ["tokens_per_second", "supervised_tokens_per_second"]
    found = of_kind(records, "retrieval")
    plots = [
        _plot(LOSS_PLOT, "Loss", "loss", train, ["loss"], evaluation),
        _plot(
            "parts_of_the_loss.png",
            "Embedding and generative loss",
            "loss",
            [record for record in train if "embedding_loss" in record and "generative_loss" in record],
            ["embedding_loss", "generative_loss"],
        ),
        _plot(
            "embedding_accuracy.png",
            "Embedding accuracy",
            "queries whose positive is first",
            train,
            ["embedding_accuracy"],
            evaluation,
        ),
        _plot(
            "reward_accuracy.png",
            "Reward accuracy",
            "reward accuracy",
            train,
            ["reward_accuracy"],
            evaluation,
        ),
        _plot("reward_margin.png", "Reward margin", "margin", train, ["reward_margin"], evaluation),
        _plot("learning_rate.png", "Learning rate", "learning rate", train, ["learning_rate"], exact=True),
        _plot("grad_norm.png", "Gradient norm", "L2 norm before clipping", train, ["grad_norm"]),
        _plot(
            "router_loss.png",
            "Router loss (expert balance)",
            "router loss",
            train,
            ["router_loss", "embedding_router_loss"],
        ),
        _plot("tokens_per_second.png", "Speed", "tokens per second", timed, rates),
        _plot("retrieval.png", "Retrieval", "recall and nDCG", found, ["recall@1", "recall@10", "ndcg@10"]),
    ]
    return [plot for plot in plots if plot is not None]


def _plot(
    file: str,
    title: str,
    label: str,
    records: list[Record],
    keys: list[str],
    evaluation: Sequence[Record] = (),
    *,
    exact: bool = False,
) -> Plot | None:
    series = [
        Series(key.replace("_", " "), color, points, exact=exact)
        for key, color in zip(keys, (MAIN, SECOND, THIRD), strict=False)
        if len(points := _points(records, key)) >= 2
    ]
    if not series:
        return None
    if held_out := _points(evaluation, keys[0]):
        series.append(Series(f"evaluation {series[0].label}", SECOND, held_out, marked=True))
    return Plot(file, title, label, series)


def _points(records: Sequence[Record], key: str) -> list[tuple[float, float]]:
    return [(record["step"], record[key]) for record in records if record.get(key) is not None]


def _line(axes: Axes, series: Series) -> None:
    steps, values = zip(*series.points, strict=True)
    color, label = series.color, series.label
    if series.marked:
        axes.plot(steps, values, color=color, marker="o", markersize=5, label=label)
        return
    if series.exact or len(steps) < SMOOTHED_FROM:
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
