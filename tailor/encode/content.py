"""The content of a message: a text, or a list of parts (text, reasoning, tool calls). Images and sound are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.encode.records import RowError

_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_FILES = ("", "_path", "_paths", "_url", "_urls", "_file", "_files")
MEDIA = frozenset(f"{name}{file}" for name in _MEDIA for file in _FILES)
"""Columns and message keys that hold what is not text."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Message keys that hold an assistant's reasoning, the usual one first."""

_TEXT = ("text", "input_text", "output_text")
_REASONING = ("reasoning", "thinking", "think")
_CALLS = ("tool_call", "function_call")
_PLACEHOLDER = re.compile(r"<(\|?)(image|video|audio)(_pad|_?\d+)?\1>", re.IGNORECASE)
_QUOTES = ("`", '"', "'", "“", "‘", "«")
_ELEMENT = re.compile(r"\W{0,3}(?:html5?\s+|svg\s+)?(?:tag|element|markup)s?\b", re.IGNORECASE)


@dataclass
class Content:
    """What the parts of a content hold."""

    text: str = ""
    reasoning: str = ""
    calls: list[Any] = field(default_factory=list)


def read_content(value: Any, name: str) -> Content:
    """The content of a message: a text, or a list of texts and parts. RowError for parts of other types."""
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RowError("wrong_type", f"`{name}` must be a text, not {kind_of(value)}")
    content = Content()
    for part in value:
        if isinstance(part, str):
            content.text += part
            continue
        if not isinstance(part, Mapping):
            raise RowError(
                "wrong_type", f"`{name}` has a part that is {kind_of(part)}; only text is supported"
            )
        kind = part.get("type") or "text"
        if kind in _CALLS:
            content.calls.append(_held(part, name, kind, (kind, "value")))
        elif kind in _REASONING:
            content.reasoning += _text(part, name, kind, (kind, "value", "text"))
        elif kind in _TEXT:
            content.text += _text(part, name, kind, ("text", "value"))
        else:
            raise RowError("wrong_type", f"`{name}` has a part of type {kind!r}; only text is supported")
    return content


def part_text(part: Any, name: str) -> str:
    """The text of a part of an answer or a prompt that is no message. RowError for reasoning and tool calls too."""
    content = read_content([part], name)
    if content.reasoning or content.calls or isinstance(part, str):
        what = "a text in a list" if isinstance(part, str) else f"a part of type {part.get('type')!r}"
        raise RowError("wrong_type", f"`{name}` has {what}; one text or text parts are read")
    return content.text


def refuse_media(row: Mapping[str, Any], where: str) -> None:
    """RowError for a row or message with images, sound or video beside its text."""
    if MEDIA.isdisjoint(row):
        return
    for key in sorted(MEDIA.intersection(row)):
        if _holds_media(row[key]):
            raise RowError("not_text", f"{where} has `{key}`; only text is supported")


def refuse_placeholder(text: str) -> None:
    """RowError for a user's text with a placeholder such as `<image>`, unless it is about an element of HTML or SVG."""
    if "<" not in text:
        return
    for found in _PLACEHOLDER.finditer(text):
        if found[1] or found[3] or not _is_element(text, found):
            raise RowError(
                "not_text", f"the user's text has the placeholder `{found[0]}`; only text is supported"
            )


def _is_element(text: str, found: re.Match[str]) -> bool:
    """Whether `<image>` is quoted, called a tag or closed, as in a question about HTML."""
    before, after = text[: found.start()], text[found.end() :]
    return f"</{found[2]}>" in text or before.endswith(_QUOTES) or _ELEMENT.match(after) is not None


def is_empty(value: Any) -> bool:
    """Whether a column or key holds nothing."""
    return not _has_content(value)


def _holds_media(value: Any) -> bool:
    """Whether a value has a text, bytes or a number. Datasets that mix rows fill others with nulls, at any depth, or NaN."""
    if isinstance(value, Mapping):
        return any(map(_holds_media, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_media, value))
    return not (value is None or value in ("", b"") or value is False or value != value)


def _has_content(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)


def _held(part: Mapping[str, Any], name: str, kind: str, keys: Sequence[str]) -> Any:
    for key in keys:
        if part.get(key) is not None:
            return part[key]
    shown = ", ".join(key for key, value in part.items() if value is not None)
    raise RowError(
        "missing_key", f"`{name}` has a part of type {kind!r} without `{keys[0]}`; its keys: {shown}"
    )


def _text(part: Mapping[str, Any], name: str, kind: str, keys: Sequence[str]) -> str:
    value = _held(part, name, kind, keys)
    if isinstance(value, str):
        return value
    raise RowError("wrong_type", f"`{name}` has a part of type {kind!r} whose text is {kind_of(value)}")


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
