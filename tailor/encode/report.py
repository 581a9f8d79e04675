"""What preparation counted: per task, per source, and against the budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tailor.errors import DataError
from tailor.spec.data import Budget

NAMED = 5
DROPPED = ("too_long", "nothing_supervised", "same_answers")
_PERCENTILES = (50, 90, 95, 99)
_BINS = 12


@dataclass
class Loss:
    """Rows left out for one reason: how many, and the first of them as (file label, row, detail)."""

    count: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, label: str, row: int, detail: str) -> None:
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append((label, row, detail))


@dataclass
class TaskReport:
    """What one task did. Row numbers are within its part; `prepare` makes them numbers of the file.

    shards: (split, file name, examples). lengths: split -> int32 token lengths of its examples.
    """

    number: int
    rows: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    held_out: int = 0
    truncated: int = 0
    lost: int = 0
    prompt_lost: int = 0
    chunked: int = 0
    pieces: int = 0
    idle_pieces: int = 0
    retrieved: int = 0
    passed_over: int = 0
    partly_read: int = 0
    split: int = 0
    lost_rows: dict[str, Loss] = field(default_factory=dict)
    shards: list[tuple[str, str, int]] = field(default_factory=list)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    hashes: dict[str, np.ndarray] = field(default_factory=dict)
    """Content of the rows kept: split -> uint64, where the recipe has evaluation sources."""
    hashed_rows: list[tuple[str, int]] = field(default_factory=list)
    """The evaluation rows that have a hash, as (file label, row)."""
    supervised: Counter[str] = field(default_factory=Counter)

    def lose(self, reason: str, label: str, row: int, detail: str) -> None:
        self.lost_rows.setdefault(reason, Loss()).add(label, row, detail)


def source_report(
    reports: Sequence[TaskReport], *, split: str, index: int, path: str, fmt: str, guessed: bool
) -> dict[str, Any]:
    """The report of one source: counts, lost rows by reason with their names, tokens and lengths."""
    losses: dict[str, Loss] = {}
    for report in reports:
        for reason, loss in report.lost_rows.items():
            total = losses.setdefault(reason, Loss())
            total.count += loss.count
            total.first = (total.first + loss.first)[:NAMED]
    lengths = [array for report in reports for array in report.lengths.values()]
    return {
        "split": split,
        "index": index,
        "path": path,
        "format": fmt,
        "format_guessed": guessed,
        "rows": sum(report.rows for report in reports),
        "kept": sum(report.kept for report in reports),
        "held_out": sum(report.held_out for report in reports),
        "unreadable": {
            reason: _loss(loss) for reason, loss in sorted(losses.items()) if reason not in DROPPED
        },
        "dropped": {reason: _loss(loss) for reason, loss in sorted(losses.items()) if reason in DROPPED},
        "truncated": sum(report.truncated for report in reports),
        "supervised_tokens_cut": sum(report.lost for report in reports),
        "prompt_tokens_cut": sum(report.prompt_lost for report in reports),
        "chunked": sum(report.chunked for report in reports),
        "pieces": sum(report.pieces for report in reports),
        "pieces_left_out": sum(report.idle_pieces for report in reports),
        "retrieved": sum(report.retrieved for report in reports),
        "tokens_passed_over": sum(report.passed_over for report in reports),
        "passages_partly_read": sum(report.partly_read for report in reports),
        "split_conversations": sum(report.split for report in reports),
        **measures(lengths, sum(sum(report.supervised.values()) for report in reports)),
    }


def split_report(reports: Iterable[TaskReport], split: str) -> dict[str, Any]:
    """Examples, tokens, lengths and their histogram of a whole split."""
    reports = list(reports)
    lengths = [report.lengths[split] for report in reports if split in report.lengths]
    counted = measures(lengths, sum(report.supervised[split] for report in reports))
    joined = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    return {**counted, "histogram": _histogram(joined)}


def _histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """Counts of whole-number bins of one width: bin i holds the lengths in [edges[i], edges[i + 1])."""
    if not len(lengths):
        return {"counts": [], "edges": []}
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // _BINS)
    edges = np.arange(low, high + 1 + width, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def notes(report: Mapping[str, Any], holdout: float | None) -> list[str]:
    """What the user should know of the prepared data although nothing is wrong with its rows."""
    told = []
    kept = sum(source["kept"] for source in report["sources"] if source["split"] == "train")
    if holdout is not None and kept and not report["evaluation"]["examples"]:
        told.append(f"holdout {holdout:g} of {kept:,} rows left no evaluation row; raise data.holdout")
    for source in report["sources"]:
        if found := source.get("in_training", {"count": 0})["count"]:
            told.append(
                f"data.{source['split']}[{source['index']}] {source['path']}: {found:,} of its {source['kept']:,} rows are "
                f"training rows too ({', '.join(source['in_training']['first'][:3])}); remove them from one of both"
            )
    if cut := sum(source.get("passages_partly_read", 0) for source in report["sources"]):
        told.append(
            f"{cut:,} passages and questions were longer than the embedder reads, which scored them by their "
            "beginnings; lower data.retrieve.passage or data.retrieve.question"
        )
    return told


def measures(lengths: Sequence[np.ndarray], supervised: int) -> dict[str, Any]:
    """Examples, tokens, supervised tokens, and percentiles of the examples' lengths in tokens."""
    joined = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    counted: dict[str, Any] = {
        "examples": len(joined),
        "tokens": int(joined.sum(dtype=np.int64)),
        "supervised_tokens": int(supervised),
        "lengths": {},
    }
    if len(joined):
        marks = np.percentile(joined, _PERCENTILES, method="higher")
        counted["lengths"] = {
            "min": int(joined.min()),
            "mean": round(float(joined.mean()), 1),
            **{f"p{percent}": int(mark) for percent, mark in zip(_PERCENTILES, marks, strict=True)},
            "max": int(joined.max()),
        }
    return counted


def check_budget(report: Mapping[str, Any], budget: Budget) -> None:
    """DataError when a source lost more rows than the budget allows, or has no usable row at all."""
    for source in report["sources"]:
        where = f"data.{source['split']}[{source['index']}] {source['path']}"
        losses = {**source["unreadable"], **source["dropped"]}
        if not source["kept"]:
            raise DataError(
                f"{where}: none of its {source['rows']} rows can be used{_told(losses)}",
                hint="look at the reasons, and at the source's format and columns",
            )
        for key, what in (("unreadable", "cannot be read"), ("dropped", "would be dropped")):
            count = sum(loss["count"] for loss in source[key].values())
            _refuse(where, count, source["rows"], getattr(budget, key), key, what, source[key])
        _refuse(
            where,
            source["truncated"],
            source["rows"],
            budget.truncated,
            "truncated",
            "would be truncated",
            {},
        )


def _refuse(
    where: str, count: int, rows: int, allowed: float, key: str, what: str, losses: Mapping[str, Any]
) -> None:
    if count <= allowed * rows:
        return
    needed = min(math.ceil(1000 * count / rows) / 1000, 1.0)
    cure = {
        "unreadable": "fix these rows",
        "dropped": "raise data.max_length or set data.on_long",
        "truncated": "raise data.max_length",
    }[key]
    if set(losses) == {"template"}:
        cure = "choose a data.template that takes them"
    elif set(losses) == {"nothing_supervised"}:
        cure = "look at them with `tailor data preview`"
    elif set(losses) == {"same_answers"}:
        cure = "fix these rows"
    raise DataError(
        f"{where}: {count} of {rows} rows {what}, and the budget allows {_share(allowed)}{_told(losses)}",
        hint=f"{cure}, or allow it with data.budget.{key}: {needed:g}",
    )


def _share(allowed: float) -> str:
    return f"{100 * allowed:.3g} %" if allowed else "none"


def _told(losses: Mapping[str, Any]) -> str:
    """The reasons with their first rows, most frequent first."""
    lines = []
    for reason, loss in sorted(losses.items(), key=lambda item: (-item[1]["count"], item[0])):
        named = "; ".join(f"{name} {detail}".strip() for name, detail in loss["first"][:3])
        more = f"; and {loss['count'] - 3} more" if loss["count"] > 3 else ""
        lines.append(f"\n  {loss['count']} {reason}: {named}{more}")
    return "".join(lines)


def _loss(loss: Loss) -> dict[str, Any]:
    return {"count": loss.count, "first": [[f"{label}:{row}", detail] for label, row, detail in loss.first]}
