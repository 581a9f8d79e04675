"""Values of Go templates, and the functions that they call: Go's own, and those that Ollama adds.

Values: str, int, float, bool, None (nil), list, dict (a Go map), and `Struct`, which knows its fields and its text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tailor.errors import TemplateError

MAX_TEXT = 10_000_000
"""Characters that a template may write, or make with a function: prompts of probes need a few thousand."""


@dataclass(frozen=True)
class Struct:
    """A Go struct. text: what it prints (its String method, in Ollama always JSON); None if it has no such method."""

    fields: Mapping[str, Any]
    text: str | None = None


def truth(value: Any) -> bool:
    """Whether a value counts as true: not nil, false, 0 or empty."""
    return True if isinstance(value, Struct) else bool(value)


def printed(value: Any) -> str:
    """A value as text. TemplateError for one whose Go text is not known here."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if value is None:
        return "<no value>"
    if isinstance(value, Struct) and value.text is not None:
        return value.text
    raise TemplateError(f"the Go template prints {kind(value)}")


def to_json(value: Any) -> str:
    """A value as Go's json.Marshal writes it: compact, keys of maps sorted, and `<`, `>` and `&` escaped."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda match: escapes[match.group()], text)


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        if value.text is None:
            raise ValueError("JSON of a struct is not supported here")
        return json.loads(value.text)
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def kind(value: Any) -> str:
    """What a value is, for messages."""
    return {dict: "a map", list: "a list", Struct: "a struct", float: "a float"}.get(
        type(value), type(value).__name__
    )


def call(name: str, given: list[Any]) -> Any:
    """The value of a function. TemplateError where Go would stop with an error."""
    try:
        value = FUNCTIONS[name](*given)
    except (TypeError, IndexError, KeyError, ValueError) as error:
        raise TemplateError(
            f"the Go template calls {name} with other arguments than it takes: {error}"
        ) from None
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise TemplateError(f"the Go template makes too long a text with {name}")
    return value


def _equal(first: Any, second: Any, *others: Any) -> bool:
    others = (second, *others)
    return any(_samekind(first, other) and first == other for other in others)


def _samekind(first: Any, second: Any) -> bool:
    """ValueError when Go does not compare the two."""
    if first is None or second is None:
        return True
    kinds = [bool if isinstance(one, bool) else type(one) for one in (first, second)]
    if kinds[0] is not kinds[1] or kinds[0] not in (bool, int, float, str):
        raise ValueError("these cannot be compared")
    return True


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def function(first: Any, second: Any) -> bool:
        _samekind(first, second)
        return compare(first, second)

    return function


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, list):
            if not isinstance(key, int) or not 0 <= key < len(value):
                raise IndexError(f"no element {key}")
            value = value[key]
        elif isinstance(value, dict):
            value = value.get(key)
        else:
            raise TypeError(f"index of {kind(value)}")
    return value


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    if not isinstance(value, list | str):
        raise TypeError(f"a part of {kind(value)}")
    whole = value.encode() if isinstance(value, str) else value  # Go counts bytes
    end = len(whole) if end is None else end
    if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(whole):
        raise IndexError(f"no part {start}:{end}")
    part = whole[start:end]
    return part.decode() if isinstance(part, bytes) else part


def _printf(form: str, *values: Any) -> str:
    if re.sub(r"%[svd]", "", form).count("%") or len(re.findall(r"%[svd]", form)) != len(values):
        raise ValueError(f"the format {form!r} is not supported here")
    left = list(values)
    return re.sub(r"%[svd]", lambda _: printed(left.pop(0)), form)


def _print(*values: Any) -> str:
    text = ""
    for number, value in enumerate(values):  # Go's Sprint: a space between two operands that are no strings
        between = number and not isinstance(value, str) and not isinstance(values[number - 1], str)
        text += (" " if between else "") + printed(value)
    return text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": _ordered(lambda first, second: first < second),
    "le": _ordered(lambda first, second: first <= second),
    "gt": _ordered(lambda first, second: first > second),
    "ge": _ordered(lambda first, second: first >= second),
    "not": lambda value: not truth(value),
    "len": lambda value: len(value.encode()) if isinstance(value, str) else len(value),
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": lambda *values: " ".join(map(printed, values)) + "\n",
    "printf": _printf,
    "json": to_json,
    "currentDate": lambda *_: datetime.date.today().isoformat(),
    "yesterdayDate": lambda *_: (datetime.date.today() - datetime.timedelta(days=1)).isoformat(),
}
