"""Evaluations in a run's folder, or beside a model: `evaluation/NAME/`, whole only with its COMMIT.

evaluation.yaml  what was evaluated, resolved
results.json     figures with intervals, the models, the bounds that were passed
answers.jsonl    each question with its reference, and each model's answer and scores
facts.jsonl, choices.jsonl, passages.jsonl, lm_eval.jsonl   the same for the other tasks
passkey.jsonl, needle.jsonl, texts.jsonl   values that were hidden and found; losses of long texts by length
retrieval.jsonl  each query with its relevant passages, and the best that each model found
figures.png; passkey.png, needle.png, long_perplexity.png where these tasks are
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from tailor.layout import EVALUATION, RESULTS
from tailor.runs.report.plots import GRID, INK, MAIN, SECOND, THIRD

if TYPE_CHECKING:
    from tailor.store import Store

FINAL = "final"
"""Name of the evaluation of a finished run, where its recipe gives none."""
KINDS = ("answers", "facts", "searches")
"""Rows that are shown: answers with a reference, answers with the facts that they state, queries with passages found."""
COLOURS = (MAIN, SECOND, THIRD, "#9333ea", "#b42318", "#616e7c")


def names(run: Store) -> list[str]:
    """The evaluations of a run, by name."""
    folder = run.join(EVALUATION)
    return [name for name in folder.names() if folder.is_committed(name)]


def read(run: Store, name: str) -> dict[str, Any]:
    """An evaluation's results.json."""
    results: dict[str, Any] = run.read_json(f"{EVALUATION}/{name}/{RESULTS}")
    return results


def rows_to_show(folder: Store) -> list[tuple[str, str]]:
    """(kind, file) of those of an evaluation's JSONL files whose rows can be shown, by what a row has."""
    found = []
    for file in folder.names():
        if file.endswith(".jsonl"):
            with folder.open(file) as stream:
                kind = _kind(json.loads(stream.readline() or "{}"))
            found += [(kind, file)] if kind is not None else []
    return sorted(found, key=lambda pair: (KINDS.index(pair[0]), pair[1]))


def _kind(row: dict[str, Any]) -> str | None:
    own = next(iter(row.get("models", {}).values()), {})
    if "query" in row and "found" in own:
        return "searches"
    if "prompt" in row and "answer" in own:
        return "facts" if "facts" in row else "answers" if "reference" in row else None
    return None


def rows(folder: Store, file: str, count: int | None) -> list[dict[str, Any]]:
    """The first rows of one of an evaluation's JSONL files, or all of them."""
    lines = [line for line in folder.read_text(file).split("\n") if line]
    return [json.loads(line) for line in lines[:count]]


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the figures: a column per model, and the first one's difference to each other."""
    models = list(results["models"])
    first, *others = models
    head = ["figure", *models, *(f"{first} - {other}" for other in others), "rows"]
    body = []
    for entry in results["figures"]:
        cells = [entry["figure"] + ("" if entry["better"] == "lower" else " %")]
        cells += [_with_interval(entry, entry["models"][model]) for model in models]
        cells += [_with_interval(entry, entry["differences"][other], sign="+") for other in others]
        body.append([*cells, f"{entry['rows']:,}"])
    return head, body


def in_a_line(results: dict[str, Any]) -> str:
    """The first model's figures, and the bounds that were passed."""
    told = [
        f"{entry['figure']} {shown(entry, next(iter(entry['models'].values()))['value'])}"
        + ("" if entry["better"] == "lower" else "%")
        for entry in results["figures"]
    ]
    return ", ".join(told) + (f"; FAILED: {'; '.join(results['failed'])}" if results["failed"] else "")


def _with_interval(entry: dict[str, Any], found: dict[str, Any], sign: str = "") -> str:
    low, high = found["interval"]
    return f"{shown(entry, found['value'], sign)} [{shown(entry, low, sign)}, {shown(entry, high, sign)}]"


def shown(entry: dict[str, Any], value: float, sign: str = "") -> str:
    """A figure as text: shares in per cent, losses as they are. `sign`: `+` for a difference."""
    if entry["better"] == "lower":
        return f"{value:{sign}.4g}"
    return f"{100 * value:{sign}.1f}"


def draw(results: dict[str, Any]) -> bytes:
    """The figures with their intervals as a PNG: shares on one side, perplexity or loss on the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [entry for entry in results["figures"] if entry["better"] == "higher"]
    losses = [entry for entry in results["figures"] if entry["figure"].startswith("perplexity")]
    panels = [(entries, what) for entries, what in ((shares, "share"), (losses, "perplexity")) if entries]
    if not panels:  # lm-eval's alone, none of which is a mean over rows
        panels = [([], "share")]
    widths = [max(1, len(entries)) for entries, _ in panels]
    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    models = list(results["models"])
    for axes, (entries, what) in zip(
        figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0], panels, strict=True
    ):
        for number, model in enumerate(models):
            found = [entry["models"][model] for entry in entries]
            places = [at + (number - (len(models) - 1) / 2) * 0.16 for at in range(len(entries))]
            values = [one["value"] for one in found]
            spread = [
                [max(0.0, one["value"] - one["interval"][0]) for one in found],
                [max(0.0, one["interval"][1] - one["value"]) for one in found],
            ]
            axes.errorbar(
                places, values, yerr=spread, fmt="o", capsize=3, label=model, color=COLOURS[number % 6]
            )
        axes.set_xticks(
            range(len(entries)), [entry["figure"].replace("_", "\n").replace("/", "\n") for entry in entries]
        )
        axes.set_xlim(-0.5, len(entries) - 0.5)
        axes.set_ylabel(what, color=INK)
        if what == "share":
            axes.set_ylim(-0.02, 1.02)
        elif max(one["value"] for entry in entries for one in entry["models"].values()) > 20:
            axes.set_yscale("log")
        axes.grid(color=GRID, linewidth=0.8, axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
