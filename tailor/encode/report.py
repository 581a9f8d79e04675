"""The data report: what preparation counted per task, source and split, and the check against the budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tailor.data.blocks import Blocks
from tailor.encode.counted_rows import NAMED, CountedRows
from tailor.encode.length_counts import NO_LENGTHS, LengthCounts
from tailor.errors import DataError
from tailor.spec.data import FORMAT_KINDS, PAIRS, RATED, RELEVANCE, Budget

DROPPED = ("too_long", "nothing_supervised", "same_answers", "empty_answer", "control_text")
SHORT = "too_short"
REMOVED = ("duplicate", "near_duplicate", "contaminated", SHORT)
"""Reasons of rows that the recipe asks to leave out: `data.deduplicate`, `data.decontaminate` and `data.min_length`. The budget
does not limit them."""
MISSING_NEGATIVES = "add negatives with `tailor mine`"
MISSING_SCORES = "add the scores of a teacher with `tailor score`, or remove method.distillation"
NO_HASHES = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class WrittenShard:
    """A shard of the token store. name: its file. files, datasets: names that its columns count; no datasets: files are.

    bytes, checksum: of the file, as `store.file_cache` checks them.
    """

    split: str
    name: str
    examples: int
    bytes: int
    checksum: str
    files: list[str]
    datasets: list[str]


@dataclass
class TaskReport:
    """What one task counted. Row numbers count from the start of its file range; `prepare` makes them numbers of the file.

    kept: rows that became examples. held_out: kept rows that went to the evaluation split. supervised_cut, prompt_cut:
    tokens cut away by truncation. chunked: rows cut into chunks; pieces: the chunks kept; unsupervised_pieces: the
    chunks without supervised tokens, which were left out. retrieved: rows from whose prompts passages were left out;
    passed_over: the tokens of these passages; partly_read: texts longer than the embedder's input. split: conversations
    that made several examples. lengths: split -> the lengths of the examples; `prepare` moves them to `Lengths`.
    """

    number: int
    rows: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    held_out: int = 0
    truncated: int = 0
    supervised_cut: int = 0
    prompt_cut: int = 0
    chunked: int = 0
    pieces: int = 0
    unsupervised_pieces: int = 0
    retrieved: int = 0
    passed_over: int = 0
    partly_read: int = 0
    split: int = 0
    lost_rows: dict[str, CountedRows] = field(default_factory=dict)
    unused: dict[str, CountedRows] = field(default_factory=dict)
    """Columns and keys that the format does not use. Counted are the rows that have them."""
    changes: dict[str, CountedRows] = field(default_factory=dict)
    """What conversion changed in rows."""
    named: set[str] = field(default_factory=set)
    """The columns that the source's `columns` names and that some row has."""
    seen: dict[str, None] = field(default_factory=dict)
    """Columns of the rows, in order."""
    shards: list[WrittenShard] = field(default_factory=list)
    lengths: dict[str, LengthCounts] = field(default_factory=dict)
    blocks: dict[str, list[Blocks]] = field(default_factory=dict)
    """split -> the blocks of each of its shards, for the batches of large splits."""
    hashes: np.ndarray = field(default_factory=lambda: NO_HASHES)
    """uint64: the content of the rows kept, of an evaluation source all, of a training source those that are evaluated too."""
    hashed_rows: list[tuple[str, int]] = field(default_factory=list)
    """The rows of an evaluation source that have a hash, as (file label, row)."""
    supervised: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, label: str, row: int, detail: str) -> None:
        """Count a row that is left out."""
        self.lost_rows.setdefault(reason, CountedRows()).add(label, row, detail)


class Lengths:
    """The lengths of all examples, summed as the tasks end: thousands of tasks have as many bytes as one."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int, str], LengthCounts] = {}

    def take(self, report: TaskReport, split: str, source: int) -> None:
        """Move the lengths of a task's report here. split, source: those of the task."""
        for own, lengths in report.lengths.items():
            key = (split, source, own)
            self._sums[key] = LengthCounts.sum((self._sums.get(key, NO_LENGTHS), lengths))
        report.lengths.clear()

    def of_source(self, split: str, source: int) -> LengthCounts:
        """Of a source, in both splits."""
        return LengthCounts.sum(one for key, one in self._sums.items() if key[:2] == (split, source))

    def of_split(self, split: str) -> LengthCounts:
        """Of a split, including the holdout of training sources."""
        return LengthCounts.sum(one for key, one in self._sums.items() if key[2] == split)


def source_report(
    reports: Sequence[TaskReport],
    lengths: LengthCounts,
    *,
    split: str,
    index: int,
    path: str,
    fmt: str,
    detected: bool,
) -> dict[str, Any]:
    """The report of one source: counts, rows left out by reason with the first names, tokens and lengths.

    lengths: of its examples.
    """
    lost: dict[str, CountedRows] = {}
    for report in reports:
        for reason, rows in report.lost_rows.items():
            total = lost.setdefault(reason, CountedRows())
            total.count += rows.count
            total.first = (total.first + rows.first)[:NAMED]
    return {
        "split": split,
        "index": index,
        "path": path,
        "format": fmt,
        "format_guessed": detected,
        "rows": sum(report.rows for report in reports),
        "kept": sum(report.kept for report in reports),
        "held_out": sum(report.held_out for report in reports),
        "unreadable": {
            reason: _as_json(rows)
            for reason, rows in sorted(lost.items())
            if reason not in (*DROPPED, *REMOVED)
        },
        "dropped": {reason: _as_json(rows) for reason, rows in sorted(lost.items()) if reason in DROPPED},
        "removed": {reason: _as_json(rows) for reason, rows in sorted(lost.items()) if reason in REMOVED},
        "truncated": sum(report.truncated for report in reports),
        "supervised_tokens_cut": sum(report.supervised_cut for report in reports),
        "prompt_tokens_cut": sum(report.prompt_cut for report in reports),
        "chunked": sum(report.chunked for report in reports),
        "pieces": sum(report.pieces for report in reports),
        "pieces_left_out": sum(report.unsupervised_pieces for report in reports),
        "retrieved": sum(report.retrieved for report in reports),
        "tokens_passed_over": sum(report.passed_over for report in reports),
        "passages_partly_read": sum(report.partly_read for report in reports),
        "split_conversations": sum(report.split for report in reports),
        **lengths.measures(sum(sum(report.supervised.values()) for report in reports)),
    }


def split_report(reports: Iterable[TaskReport], lengths: LengthCounts, split: str) -> dict[str, Any]:
    """The report of a split: number of examples, tokens, lengths and a histogram of the lengths of its examples."""
    counted = lengths.measures(sum(report.supervised[split] for report in reports))
    return {**counted, "histogram": lengths.histogram()}


def notes(report: Mapping[str, Any], holdout: float | None) -> list[str]:
    """Warnings about the prepared data that are not errors of single rows."""
    warnings = []
    kept = sum(source["kept"] for source in report["sources"] if source["split"] == "train")
    if holdout is not None and kept and not report["evaluation"]["examples"]:
        warnings.append(
            f"data.holdout: {holdout:g} selects no evaluation row from {kept:,} rows; raise data.holdout"
        )
    if holdout is not None and kept and not report["train"]["examples"]:
        warnings.append(
            f"data.holdout: {holdout:g} selects all {kept:,} rows for evaluation; lower data.holdout"
        )
    for source in report["sources"]:
        if found := source.get("in_training", {"count": 0})["count"]:
            by_prompt = FORMAT_KINDS.get(source["format"]) in (PAIRS, RATED, RELEVANCE)
            what = "have the prompt of a training row" if by_prompt else "are also training rows"
            warnings.append(
                f"data.{source['split']}[{source['index']}] {source['path']}: {found:,} of {source['kept']:,} rows {what} "
                f"({', '.join(source['in_training']['first'][:3])}); remove them from one of the two"
            )
    if cut := sum(source.get("passages_partly_read", 0) for source in report["sources"]):
        warnings.append(
            f"{cut:,} passages and questions are longer than the embedder's maximum length, so it scored only their "
            "beginnings; lower data.retrieve.passage or data.retrieve.question"
        )
    return warnings


def check_budget(report: Mapping[str, Any], budget: Budget) -> None:
    """DataError when a source lost more rows than the budget allows, or has no usable row at all."""
    for source in report["sources"]:
        context = f"data.{source['split']}[{source['index']}] {source['path']}"
        lost = {**source["unreadable"], **source["dropped"], **source.get("removed", {})}
        if not source["kept"]:
            hint = "check the reasons above, and the source's format and columns"
            if set(lost) == {"too_long"}:
                hint = "raise data.max_length, or set data.on_long"
            elif set(lost) == {"missing_scores"}:
                hint = MISSING_SCORES
            elif set(lost) == {"missing_negatives"}:
                hint = MISSING_NEGATIVES
            elif set(lost) == {SHORT}:
                hint = "lower data.min_length"
            elif lost and set(lost) <= set(REMOVED):
                hint = "remove the source, or change data.deduplicate, data.decontaminate or data.min_length"
            raise DataError(
                f"{context}: none of its {source['rows']} rows can be used{_reasons(lost)}", hint=hint
            )
        for key, what in (("unreadable", "cannot be read"), ("dropped", "would be dropped")):
            count = sum(rows["count"] for rows in source[key].values())
            _check(context, count, source["rows"], getattr(budget, key), key, what, source[key])
        _check(
            context,
            source["truncated"],
            source["rows"],
            budget.truncated,
            "truncated",
            "would be truncated",
            {},
        )


def _check(
    context: str, count: int, rows: int, allowed: float, key: str, what: str, lost: Mapping[str, Any]
) -> None:
    """DataError when more than the allowed share of a source's rows is lost in one way."""
    if count <= Fraction(str(allowed)) * rows:  # as written: in binary, 0.29 of 100 rows are fewer than 29
        return
    needed = min(math.ceil(1000 * count / rows) / 1000, 1.0)
    hint = {
        "unreadable": "fix these rows",
        "dropped": "raise data.max_length or set data.on_long",
        "truncated": "raise data.max_length",
    }[key]
    if set(lost) == {"template"}:
        hint = "choose a data.template that supports these rows"
    elif set(lost) == {"reasoning_dropped"}:
        hint = "choose a data.template that writes the reasoning, or set data.reasoning: drop"
    elif set(lost) == {"missing_scores"}:
        hint = MISSING_SCORES
    elif set(lost) == {"missing_negatives"}:
        hint = MISSING_NEGATIVES
    elif set(lost) == {"nothing_supervised"}:
        hint = "look at these rows with `tailor data preview`"
    elif lost and set(lost) <= {"same_answers", "empty_answer", "control_text"}:
        hint = "fix these rows"
    raise DataError(
        f"{context}: {count} of {rows} rows {what}, but data.budget.{key} allows {_share(allowed)}{_reasons(lost)}",
        hint=f"{hint}, or set data.budget.{key}: {needed:g} to allow it",
    )


def _share(allowed: float) -> str:
    return f"{100 * allowed:.3g} %" if allowed else "none"


def _reasons(lost: Mapping[str, Any]) -> str:
    """One line per reason with its first rows, the most frequent reason first."""
    lines = []
    for reason, rows in sorted(lost.items(), key=lambda item: (-item[1]["count"], item[0])):
        named = "; ".join(f"{name} {detail}".strip() for name, detail in rows["first"][:3])
        more = f"; and {rows['count'] - 3} more" if rows["count"] > 3 else ""
        lines.append(f"\n  {rows['count']} {reason}: {named}{more}")
    return "".join(lines)


def _as_json(rows: CountedRows) -> dict[str, Any]:
    return {"count": rows.count, "first": [[f"{label}:{row}", detail] for label, row, detail in rows.first]}
