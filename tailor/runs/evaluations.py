"""Evaluations of a run or model: read and show the folders `evaluation/NAME/`, which are complete with their COMMIT file.

evaluation.yaml  the resolved evaluation file
results.json     metrics with confidence intervals, the models, the bounds that failed
answers.jsonl    each question with its reference, and the answer and scores of each model
facts.jsonl, choices.jsonl, passages.jsonl, lm_eval.jsonl   the same for other tasks
passkey.jsonl, needle.jsonl …, texts.jsonl   hidden values with the models' answers; losses of long texts by length
retrieval.jsonl  each query with its relevant passages, and the top passages of each model
figures.png; passkey.png, needle.png …, long_perplexity.png if the evaluation has these tasks
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.errors import StoreError
from tailor.layout import EVALUATION, RESULTS
from tailor.runs.context_lengths import EffectiveLength
from tailor.runs.report.plots import GRID, INK, MAIN, SECOND, THIRD
from tailor.spec.tasks.lengths import LongPerplexity
from tailor.store.json_files import Count, JsonFile, Number, lines

if TYPE_CHECKING:
    from tailor.store import Store


class _Estimate(TypedDict):
    value: Number
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Difference(_Estimate):
    p: NotRequired[Number | None]


class _Figure(TypedDict):
    figure: str
    better: Literal["higher", "lower"]
    unit: NotRequired[Literal["share", "number"]]
    models: dict[str, _Estimate]
    differences: dict[str, _Difference]
    rows: Count


class _Stratum(TypedDict):
    value: str
    rows: Count
    figures: list[_Figure]


class _Strata(TypedDict):
    task: str
    by: str
    values: list[_Stratum]


class _Grid(TypedDict):
    lengths: list[Count]
    depths: list[Number]
    models: dict[str, list[list[Number]]]
    intervals: NotRequired[dict[str, list[list[Annotated[list[Number], Field(min_length=2, max_length=2)]]]]]


class _Ratio(TypedDict):
    ratio: Count | None
    sequences: Count
    longest: Count


class Results(TypedDict):
    """The keys of results.json that are read. There are more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    models: Annotated[dict[str, Any], Field(min_length=1)]
    figures: list[_Figure]
    failed: list[str]
    intervals: str
    rows: NotRequired[dict[str, Any]]
    strata: NotRequired[list[_Strata]]
    grids: NotRequired[dict[str, _Grid]]
    positions: NotRequired[dict[str, Any] | None]
    definitions: NotRequired[dict[str, Count]]
    beacons: NotRequired[dict[str, list[_Ratio]]]
    effective_lengths: NotRequired[dict[str, EffectiveLength]]


class _Found(TypedDict):
    text: str
    grade: Number


class _AnswerOf(TypedDict):
    answer: str


class _FactsOf(_AnswerOf):
    found: list[bool]


class _SearchOf(TypedDict):
    found: list[_Found]


class _Answer(TypedDict):
    prompt: str
    reference: str | None
    models: dict[str, _AnswerOf]


class _Facts(TypedDict):
    prompt: str
    facts: list[list[str]]
    models: dict[str, _FactsOf]


class _Search(TypedDict):
    query: str
    models: dict[str, _SearchOf]


RESULTS_FILE = JsonFile(Results, "remove {folder}, or evaluate again with the same name")
_ROWS: dict[str, TypeAdapter[Any]] = {
    "answers": TypeAdapter(_Answer),
    "facts": TypeAdapter(_Facts),
    "searches": TypeAdapter(_Search),
}
_ANY_ROW = TypeAdapter(dict[str, Any])
_LONG_PERPLEXITY = re.compile(r"perplexity_\d+")
FINAL = "final"
"""Default name of the evaluation at the end of a run."""
KINDS = ("answers", "facts", "searches")
"""Kinds of rows that can be shown: answers with a reference, answers with required facts, queries with retrieved passages."""
COLORS = (MAIN, SECOND, THIRD, "#9333ea", "#b42318", "#616e7c")


def names(run: Store) -> list[str]:
    """Names of the complete evaluations of a run."""
    folder = run.join(EVALUATION)
    return [name for name in folder.names() if folder.is_committed(name)]


def read(run: Store, name: str) -> dict[str, Any]:
    """The content of an evaluation's results.json."""
    return RESULTS_FILE.read(run, f"{EVALUATION}/{name}/{RESULTS}")


def rows_to_show(folder: Store) -> list[tuple[str, str]]:
    """(kind, file) of the JSONL files of an evaluation whose rows can be shown. The first row decides the kind."""
    files = []
    for file in folder.names():
        if file.endswith(".jsonl"):
            with folder.open(file) as stream:
                first = lines(stream.readline().decode(errors="replace"), folder.url_of(file), _ANY_ROW)
                kind = _kind(first[0]) if first else None
            files += [(kind, file)] if kind is not None else []
    return sorted(files, key=lambda pair: (KINDS.index(pair[0]), pair[1]))


def _kind(row: dict[str, Any]) -> str | None:
    models = row.get("models")
    result = next(iter(models.values()), None) if isinstance(models, dict) else None
    if not isinstance(result, dict):
        return None
    if "query" in row and "found" in result:
        return "searches"
    if "prompt" in row and "answer" in result:
        return "facts" if "facts" in row else "answers" if "reference" in row else None
    return None


def rows(
    folder: Store, kind: str, file: str, models: Sequence[str], count: int | None
) -> list[dict[str, Any]]:
    """The first `count` rows of a JSONL file of an evaluation; all rows if `count` is None.

    models: those of the evaluation. StoreError when a row is not of this kind, or lacks a model.
    """
    chosen = [line for line in folder.read_text(file).split("\n") if line][:count]
    found = lines("\n".join(chosen), folder.url_of(file), _ROWS[kind])
    for number, row in enumerate(found, 1):
        for model in models:
            one = row["models"].get(model)
            if one is None or (kind == "facts" and len(one["found"]) != len(row["facts"])):
                raise StoreError(
                    f"{folder.url_of(file)}: row {number} is damaged: it has no complete result of {model}",
                    hint="remove the row, or evaluate again with the same name",
                )
    return found


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the metrics table: one column per model, and the difference of the first model to each other one."""
    return _head(results, "metric"), [_cells(results, entry) for entry in results["figures"]]


def tables_by_value(results: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of one table per task whose metrics are split by a column: one row per metric and value."""
    tables = []
    for strata in results.get("strata", []):
        body = [
            [stratum["value"] if at == 0 else "", *_cells(results, entry)]
            for stratum in strata["values"]
            for at, entry in enumerate(stratum["figures"])
        ]
        tables.append(([strata["by"], *_head(results, f"metric of {strata['task']}")], body))
    return tables


def _head(results: dict[str, Any], what: str) -> list[str]:
    first, *others = results["models"]
    return [what, first, *others, *(f"{first} - {other}" for other in others), "rows"]


def _cells(results: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """A metric with its values and intervals, the differences and the number of rows."""
    _, *others = models = list(results["models"])
    cells = [_name(results, entry) + (" %" if _is_share(entry) else "")]
    cells += [_with_interval(entry, entry["models"][model]) for model in models]
    cells += [_with_interval(entry, entry["differences"][other], sign="+") for other in others]
    return [*cells, f"{entry['rows']:,}"]


def one_line(results: dict[str, Any]) -> str:
    """The metrics of the first model and the failed bounds, in one line."""
    metrics = [
        f"{_name(results, entry)} {shown(entry, next(iter(entry['models'].values()))['value'])}"
        + ("%" if _is_share(entry) else "")
        for entry in results["figures"]
    ]
    return ", ".join(metrics) + (f"; FAILED: {'; '.join(results['failed'])}" if results["failed"] else "")


def _name(results: dict[str, Any], entry: dict[str, Any]) -> str:
    """The name of a metric, marked if an earlier version computed it by another definition, which has other values."""
    own = results.get("definitions", {}).get("long_perplexity", 1)
    is_earlier = own < LongPerplexity.definition and bool(results.get("positions"))
    mark = " (earlier definition)" if is_earlier and _LONG_PERPLEXITY.fullmatch(entry["figure"]) else ""
    return entry["figure"] + mark


def _with_interval(entry: dict[str, Any], estimate: dict[str, Any], sign: str = "") -> str:
    low, high = estimate["interval"]
    p = estimate.get("p")
    return (
        f"{shown(entry, estimate['value'], sign)} [{shown(entry, low, sign)}, {shown(entry, high, sign)}]"
        + (f" p={p:.3f}" if p is not None else "")
    )


def compression(ratios: Sequence[_Ratio]) -> str:
    """The ratios with which beacons compressed the sequences of an evaluation."""
    return "; ".join(
        ("not compressed" if one["ratio"] is None else f"ratio {one['ratio']}")
        + f": {one['sequences']:,} sequences of at most {one['longest']:,} tokens"
        for one in ratios
    )


def shown(entry: dict[str, Any], value: float, sign: str = "") -> str:
    """A metric as text: rates in percent, losses as they are. sign: `+` for a difference."""
    return f"{100 * value:{sign}.1f}" if _is_share(entry) else f"{value:{sign}.4g}"


def _is_share(entry: dict[str, Any]) -> bool:
    """Whether a metric is a share from 0 to 1. Results of earlier versions do not say it."""
    return bool(entry.get("unit", "share" if entry["better"] == "higher" else "number") == "share")


def draw(results: dict[str, Any]) -> bytes:
    """A PNG of the metrics with their confidence intervals: rates in the left panel, perplexities in the right one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [entry for entry in results["figures"] if _is_share(entry)]
    losses = [entry for entry in results["figures"] if "perplexity" in entry["figure"]]
    panels = [(entries, what) for entries, what in ((shares, "share"), (losses, "perplexity")) if entries]
    if not panels:  # only metrics of lm-eval
        panels = [([], "share")]
    widths = [max(1, len(entries)) for entries, _ in panels]
    figure = Figure(figsize=(max(8, 0.66 * sum(widths)), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    models = list(results["models"])
    for axes, (entries, what) in zip(
        figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0], panels, strict=True
    ):
        for number, model in enumerate(models):
            estimates = [entry["models"][model] for entry in entries]
            xs = [index + (number - (len(models) - 1) / 2) * 0.16 for index in range(len(entries))]
            values = [estimate["value"] for estimate in estimates]
            errors = [
                [max(0.0, estimate["value"] - estimate["interval"][0]) for estimate in estimates],
                [max(0.0, estimate["interval"][1] - estimate["value"]) for estimate in estimates],
            ]
            axes.errorbar(xs, values, yerr=errors, fmt="o", capsize=3, label=model, color=COLORS[number % 6])
        axes.set_xticks(
            range(len(entries)), [entry["figure"].replace("_", "\n").replace("/", "\n") for entry in entries]
        )
        axes.set_xlim(-0.5, max(1, len(entries)) - 0.5)
        axes.set_ylabel(what, color=INK)
        if what == "share":
            axes.set_ylim(-0.02, 1.02)
        elif max(estimate["value"] for entry in entries for estimate in entry["models"].values()) > 20:
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
