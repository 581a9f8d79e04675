"""What rows have that their format does not use: columns and keys of turns; and what conversion changes in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode.content import is_empty
from tailor.encode.counted_rows import CountedRows
from tailor.encode.formats.base import Format
from tailor.encode.records import Chat, Record

NULLS = "null arguments of tools or tool calls are removed"
BEFORE_QUESTION = "an assistant turn before the first user turn is not learned"
FILLED_NEGATIVES = "a query without negatives gets random passages of other rows of its dataset if method.group_size is above 1"
UNUSED_SCORES = "the scores of a teacher are used only with method.distillation"
_OTHERS = "(other columns)"
_MAX_NAMES = 100
_MAX_PLANS = 1000
_SHOWN = 60


@dataclass(frozen=True)
class _Plan:
    """What is looked at in rows of the same columns. several: fields of which several columns are there."""

    unused: tuple[str, ...]
    nested: tuple[str, ...]
    several: tuple[tuple[str, ...], ...]
    tools: tuple[str, ...]


class Watch:
    """Counts, per name, the rows of a source that have something unused or changed, with the first of them.

    Rows mostly have the same columns, and turns the same keys, so that what to look at is found once per set of them.
    """

    def __init__(self, fmt: Format, columns: Mapping[str, str], dataset_column: str | None = None) -> None:
        self._format, self._columns, self._dataset_column = fmt, columns, dataset_column
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._keys: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.unused: dict[str, CountedRows] = {}
        self.changes: dict[str, CountedRows] = {}
        self.named: set[str] = set()
        """The columns that the source's `columns` names and that some row has."""
        self.seen: dict[str, None] = {}
        """Columns of the rows, the first `_MAX_NAMES`."""

    def add(self, label: str, number: int, row: Mapping[str, Any], record: Record) -> None:
        """Look at a row that was read."""
        signature = tuple(row)
        plan = self._plans.get(signature)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[signature] = self._plan(signature)
        for column in plan.unused:
            if not is_empty(row[column]):
                self._count(self.unused, column, label, number, row[column])
        for columns in plan.several:
            given = [column for column in columns if row[column] is not None]
            for column in given[1:]:
                if not is_empty(row[column]):
                    self._count(self.unused, column, label, number, row[column])
        for column in plan.nested:
            value = row[column]
            if type(value) is list:
                self._turns(column, value, label, number)
        if any(_has_null(row[column]) for column in plan.tools):
            self._count(self.changes, NULLS, label, number, "")
        if isinstance(record, Chat) and _begins_with_answer(record):
            self._count(self.changes, BEFORE_QUESTION, label, number, "")

    def _plan(self, signature: tuple[str, ...]) -> _Plan:
        used, several = {self._dataset_column}, []
        for field, names in self._format.fields.items():
            named = (self._columns[field],) if field in self._columns else names
            present = tuple(name for name in named if name in signature)
            used.update(present)
            if len(present) > 1:
                several.append(present)
        head = self._columns.get(self._format.numbered, self._format.numbered)
        numbered = re.compile(rf"{re.escape(head)}_\d+") if self._format.numbered else None
        self.named.update(column for column in self._columns.values() if column in signature)
        if numbered and any(numbered.fullmatch(str(name)) for name in signature):
            self.named.add(head)
        if len(self.seen) < _MAX_NAMES:
            self.seen |= dict.fromkeys(map(str, signature))
        tools = self._columns.get("tools", "tools")
        return _Plan(
            tuple(
                name
                for name in signature
                if name not in used and not (numbered and numbered.fullmatch(str(name)))
            ),
            tuple(name for name in signature if name in used and name not in (tools, self._dataset_column))
            if self._format.keys is not None
            else (),
            tuple(several),
            tuple(name for name in signature if name in used and name == tools),
        )

    def _turns(self, column: str, turns: Iterable[Any], label: str, number: int) -> None:
        found: dict[str, Any] = {}
        for turn in turns:
            if type(turn) is not dict:
                continue
            signature = tuple(turn)
            others = self._keys.get(signature)
            if others is None:
                others = self._keys_of(signature)
            for key in others:
                if not is_empty(turn[key]) and key not in found:
                    found[key] = turn[key]
            if "tool_calls" in turn and _has_null_arguments(turn["tool_calls"]):
                self._count(self.changes, NULLS, label, number, "")
        for key, value in found.items():
            self._count(self.unused, f"{column}[].{key}", label, number, value)

    def _keys_of(self, signature: tuple[str, ...]) -> tuple[str, ...]:
        assert self._format.keys is not None
        if len(self._keys) >= _MAX_PLANS:
            self._keys.clear()
        others = tuple(key for key in signature if key not in self._format.keys)
        self._keys[signature] = others
        return others

    def _count(self, counts: dict[str, CountedRows], name: str, label: str, number: int, value: Any) -> None:
        if name not in counts and len(counts) >= _MAX_NAMES:
            name = _OTHERS
        loss = counts.setdefault(name, CountedRows())
        if loss.first:
            loss.count += 1
        else:
            loss.add(label, number, shown(value))


def shown(value: Any) -> str:
    """A value in a few characters."""
    if value == "":
        return ""
    text = repr(value[:_SHOWN] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def merged(reports: Iterable[Mapping[str, CountedRows]], template: str = "") -> dict[str, Any]:
    """The counts of all tasks of a source, most frequent first, without keys of messages that the template reads."""
    total: dict[str, CountedRows] = {}
    for report in reports:
        for name, loss in report.items():
            if _is_read(name, template):
                continue
            own = total.setdefault(name, CountedRows())
            own.count += loss.count
            own.first = own.first or loss.first[:1]
    order = sorted(total.items(), key=lambda item: (-item[1].count, item[0]))
    return {
        name: {"count": loss.count, "first": [f"{loss.first[0][0]}:{loss.first[0][1]}", loss.first[0][2]]}
        for name, loss in order
    }


def unused_lines(report: Mapping[str, Any], names: int = 8) -> list[str]:
    """A line per source that has unused columns or keys, and one for each change of its rows."""
    lines = []
    for source in report["sources"]:
        unused = source.get("unused", {})
        if unused:
            listed = [f"{name} ({loss['count']:,} rows)" for name, loss in list(unused.items())[:names]]
            more = f" and {len(unused) - names} more" if len(unused) > names else ""
            lines.append(f"{source['path']}: not used: {', '.join(listed)}{more}")
        for what, loss in source.get("changes", {}).items():
            lines.append(f"{source['path']}: {what} ({loss['count']:,} rows, first {loss['first'][0]})")
    return lines


def _is_read(name: str, template: str) -> bool:
    _, nested, key = name.rpartition("[].")
    return bool(nested) and re.search(rf"[.'\"]{re.escape(key)}\b", template) is not None


def _begins_with_answer(chat: Chat) -> bool:
    roles = (message["role"] for message in chat.messages[:2])
    return next((role for role in roles if role != "system"), "") == "assistant"


def _has_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(child is None or _has_null(child) for child in value.values())
    return isinstance(value, Sequence) and not isinstance(value, str) and any(map(_has_null, value))


def _has_null_arguments(calls: Any) -> bool:
    if not isinstance(calls, list):
        return False
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return any(_has_null(one.get("arguments")) for one in functions if isinstance(one, Mapping))
