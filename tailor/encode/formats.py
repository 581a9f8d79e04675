"""What a row means: one function per format, from a row's columns to a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode import preference_rows, retrieval_rows
from tailor.encode.fields import (
    kind_of,
    to_chat,
    to_list,
    to_message,
    to_question,
    to_system,
    to_text,
    to_turns,
)
from tailor.encode.records import Completion, Record, RowError, Text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format: its fields, the columns where each may stand, which of them a row must have, and its meaning."""

    name: str
    fields: dict[str, tuple[str, ...]]
    required: tuple[str, ...]
    convert: Callable[[Row], Record]
    is_chat: bool = False
    numbered: str = ""
    """A field that may stand in several columns, NAME_1, NAME_2, …: it is then a list."""

    def pick(self, row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
        """The format's fields out of a row. RowError when a required one is missing."""
        picked = {}
        for field, names in self.fields.items():
            for name in (columns[field],) if field in columns else names:
                if row.get(name) is not None:
                    picked[field] = row[name]
                    break
            else:
                if field in self.required:
                    raise RowError("missing_key", f"missing key `{columns.get(field, names[0])}`")
        if self.numbered:
            self._pick_numbered(row, columns, picked)
        return picked

    def _pick_numbered(self, row: Row, columns: Mapping[str, str], picked: dict[str, Any]) -> None:
        head = f"{columns.get(self.numbered, self.numbered)}_"
        numbers = sorted(int(name[len(head) :]) for name in row if _is_numbered(name, head))
        several = [row[f"{head}{number}"] for number in numbers if row[f"{head}{number}"] is not None]
        if several:
            first = picked.get(self.numbered, [])
            picked[self.numbered] = [*([first] if isinstance(first, str) else first), *several]

    def record(self, row: Any, columns: Mapping[str, str]) -> Record:
        """The record of a row. RowError when the row cannot be read."""
        if not isinstance(row, Mapping):
            raise RowError("wrong_type", f"a row must be an object, not {kind_of(row)}")
        return self.convert(self.pick(row, columns))


def _is_numbered(name: Any, head: str) -> bool:
    return isinstance(name, str) and name.startswith(head) and name[len(head) :].isdecimal()


def _messages(row: Row) -> Record:
    entries = to_list(row["messages"], "messages")
    messages = [to_message(entry) for entry in entries]
    return to_chat(messages, row.get("tools"))


def _sharegpt(row: Row) -> Record:
    return to_chat([*to_system(row), *to_turns(row["conversations"], "conversations")], row.get("tools"))


def _firefly(row: Row) -> Record:
    messages = to_system(row)
    for turn in to_list(row["conversation"], "conversation"):
        if not isinstance(turn, Mapping) or "human" not in turn or "assistant" not in turn:
            raise RowError("missing_key", "a turn needs the keys `human` and `assistant`")
        messages.append({"role": "user", "content": to_text(turn["human"], "human")})
        messages.append({"role": "assistant", "content": to_text(turn["assistant"], "assistant")})
    return to_chat(messages, None)


def _alpaca(row: Row) -> Record:
    answer = {"role": "assistant", "content": to_text(row["output"], "output")}
    return to_chat([*to_question(row), answer], None)


def _completion(row: Row) -> Record:
    response = to_text(row["response"], "response")
    if not response:
        raise RowError("empty", "the response is empty")
    return Completion(to_text(row["prompt"], "prompt"), response)


def _plain(row: Row) -> Record:
    text = to_text(row["text"], "text")
    if not text.strip():
        raise RowError("empty", "the text is empty")
    return Text(text)


_CONVERSATION = ("conversations", "conversation")
FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format(
            "messages",
            {"messages": ("messages", *_CONVERSATION), "tools": ("tools",)},
            ("messages",),
            _messages,
            True,
        ),
        Format(
            "sharegpt",
            {"conversations": _CONVERSATION, "tools": ("tools",), "system": ("system",)},
            ("conversations",),
            _sharegpt,
            True,
        ),
        Format(
            "firefly",
            {"conversation": ("conversation",), "system": ("system",)},
            ("conversation",),
            _firefly,
            True,
        ),
        Format(
            "alpaca",
            {name: (name,) for name in ("instruction", "input", "output", "system", "history")},
            ("instruction", "output"),
            _alpaca,
            True,
        ),
        Format(
            "completion",
            {"prompt": ("prompt",), "response": ("response", "completion")},
            ("prompt", "response"),
            _completion,
        ),
        Format("text", {"text": ("text",)}, ("text",), _plain),
        Format("turns", {"text": ("text",)}, ("text",), retrieval_rows.turns, True),
        Format(
            "preference",
            {name: (name,) for name in ("prompt", "chosen", "rejected", "tools", "system")},
            ("chosen", "rejected"),
            preference_rows.messages,
            True,
        ),
        Format(
            "preference_text",
            {name: (name,) for name in ("prompt", "chosen", "rejected")},
            ("prompt", "chosen", "rejected"),
            preference_rows.texts,
        ),
        Format(
            "preference_sharegpt",
            {
                "conversations": _CONVERSATION,
                **{name: (name,) for name in ("chosen", "rejected", "tools", "system")},
            },
            ("chosen", "rejected"),
            preference_rows.sharegpt,
            True,
        ),
        Format(
            "preference_alpaca",
            {name: (name,) for name in ("instruction", "input", "chosen", "rejected", "system", "history")},
            ("instruction", "chosen", "rejected"),
            preference_rows.alpaca,
            True,
        ),
        Format(
            "unpaired",
            {
                "prompt": ("prompt",),
                "completion": ("completion", "response", "messages"),
                **{name: (name,) for name in ("label", "tools", "system")},
            },
            ("completion", "label"),
            preference_rows.rated_messages,
            True,
        ),
        Format(
            "unpaired_text",
            {"prompt": ("prompt",), "completion": ("completion", "response"), "label": ("label",)},
            ("prompt", "completion", "label"),
            preference_rows.rated_text,
        ),
        Format(
            "gritlm",
            {name: (name,) for name in ("query", "pos", "neg")},
            ("query", "pos"),
            retrieval_rows.gritlm,
        ),
        Format(
            "flagembedding",
            {name: (name,) for name in ("query", "pos", "neg", "prompt")},
            ("query", "pos"),
            retrieval_rows.flagembedding,
        ),
        Format(
            "tevatron",
            {name: (name,) for name in ("query", "positive_passages", "negative_passages")},
            ("query", "positive_passages"),
            retrieval_rows.tevatron,
        ),
        Format(
            "sentence_transformers",
            {name: (name,) for name in ("anchor", "positive", "negative")},
            ("anchor", "positive"),
            retrieval_rows.sentence_transformers,
            numbered="negative",
        ),
    )
}


def recognise(rows: Sequence[Any], columns: Mapping[str, str], among: Sequence[str]) -> list[str]:
    """Formats that the first rows may have. One name is an answer, several are an ambiguity, none is a riddle."""
    formats = [FORMATS[name] for name in among]
    return [fmt.name for fmt in formats if set(columns) <= set(fmt.fields) and _fits(fmt, rows, columns)]


def _fits(fmt: Format, rows: Sequence[Any], columns: Mapping[str, str]) -> bool:
    """Whether any of the rows has the format's required fields, in the form that tells it from its sisters."""
    for row in rows:
        try:
            picked = fmt.pick(row, columns) if isinstance(row, Mapping) else None
        except RowError:
            continue
        if picked is not None and _form(fmt.name, picked):
            return True
    return False


def _form(name: str, picked: Row) -> bool:
    if "label" in picked and not preference_rows.is_label(picked["label"]):
        return False
    for field in ("chosen", "completion") if name in ("preference", "unpaired") else ():
        if field in picked:
            return _first_keys(picked[field]) >= {"role"}
    if name == "preference_sharegpt":
        return _first_keys(picked.get("conversations", picked["chosen"])) >= {"from", "value"}
    if name == "messages":
        return _first_keys(picked["messages"]) >= {"role"}
    if name == "sharegpt":
        return _first_keys(picked["conversations"]) >= {"from", "value"}
    if name == "firefly":
        return _first_keys(picked["conversation"]) >= {"human", "assistant"}
    if name == "turns":
        return _are_texts(picked["text"])
    if name in ("gritlm", "flagembedding"):
        plain = isinstance(picked["query"], str) and _are_texts(picked["pos"])
        return plain == (name == "flagembedding")
    if name == "tevatron":
        return isinstance(picked["query"], str) and "text" in _first_keys(picked["positive_passages"])
    # A prompt or an answer that is a list of messages belongs to another format.
    return all(isinstance(picked[field], str) for field in FORMATS[name].required if field != "label")


def _are_texts(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(text, str) for text in value)


def _first_keys(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return set(value[0])
    return set()
