"""What the operations of a chat template cost, counted before and after each, and the limits of one rendering."""

from __future__ import annotations

import re
import time
from collections.abc import Sized
from typing import Any

import jinja2

MAX_STEPS = 3_000_000
"""Loop iterations, calls (ten each), and characters / 64 of one rendering. A conversation of 1000 turns takes about 20 000."""
MAX_PROBE_STEPS = 200_000
"""Of a rendering of a short probe, of which a template gets about a dozen before any row."""
MAX_CHARACTERS = 32 << 20
"""Of the rendered text and of every text on the way there."""
MAX_SECONDS = 20.0
"""Of CPU time."""
_MAX_NUMBER = 1_000_000
"""Largest number in a call, such as the width of `center`, and bits of a computed integer."""
STEPS_OF_CALL = 10
_CHECK_TIME_EVERY = 1024
WRITERS = ("string", "tojson", "join", "pprint", "escape", "e", "urlencode", "xmlattr")
"""Filters that write whole containers, whose parts may be one and the same many times over."""
COMPARERS = ("eq", "equalto", "==", "ne", "!=", "in", "lt", "<", "le", "<=", "gt", ">", "ge", ">=")
"""Tests that compare whole containers, as the operators do."""
_COMPARING = ("index", "count", "sort", "max", "min", "unique", "groupby")
_MAKERS = ("join", "replace", "format", "tojson", "sum", "expandtabs", "indent", "translate", "wordwrap")
"""Calls that make a text or a list which can be many times their arguments."""
_MAX_INDENT = 100
_WIDTH = re.compile(r"\d{7,}")
_NUMBER = re.compile(r"\d{3,6}")


class RenderingError(jinja2.TemplateError):
    """A template that fails on a conversation in any way, or that exceeds a limit."""


class Budget:
    """What is left of the limits in one rendering."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, max_steps: int = MAX_STEPS) -> None:
        self._max_steps = max_steps
        self._steps, self._next_check = 0, _CHECK_TIME_EVERY
        self._until: float | None = None  # the clock costs a microsecond, and most renderings end before

    def step(self, characters: int = 0, steps: int = 1) -> None:
        """Count steps, and a text of `characters`. RenderingError over a limit."""
        if characters > MAX_CHARACTERS:
            raise RenderingError(f"it makes a text of more than {MAX_CHARACTERS:,} characters")
        self._steps += steps + (characters >> 6)
        if self._steps >= self._next_check:
            self._next_check = self._steps + _CHECK_TIME_EVERY
            if self._steps > self._max_steps:
                raise RenderingError(f"it does not end within {self._max_steps:,} steps")
            now = time.thread_time()
            self._until = self._until or now + MAX_SECONDS
            if now > self._until:
                raise RenderingError(f"it does not end within {MAX_SECONDS:g} seconds")

    def written(self, value: Any) -> Any:
        """A value that the template writes."""
        return value if isinstance(value, str) else self.walk(value)

    def walk(self, value: Any) -> Any:
        """Count the parts of a container that is about to be written. The value itself."""
        if isinstance(value, str):
            self.step(len(value))
        elif isinstance(value, dict | list | tuple):
            self.step()
            for part in (*value, *value.values()) if isinstance(value, dict) else value:
                self.walk(part)
        else:
            self.step()
        return value


def check_call(budget: Budget, name: str, values: tuple[Any, ...], subject: Any) -> None:
    """Count a call, and refuse one that would make a huge text at once. subject: what a filter or a method is of."""
    if not values and type(subject) is str:
        budget.step(len(subject))
        return
    for value in values:
        if type(value) is int and abs(value) > _MAX_NUMBER:
            raise RenderingError(f"it calls {name or 'a function'} with a number over {_MAX_NUMBER:,}")
    every = (subject, *values)
    texts, characters, elements = [], 0, 0
    for value in every:
        if isinstance(value, str):
            texts.append(value)
            characters += len(value)
        elif isinstance(value, (list, tuple, range, dict)):
            # Most filters and functions visit every element.
            elements += len(value)
    budget.step(characters, elements >> 2)
    if name in _COMPARING:
        for value in every:
            if isinstance(value, list | tuple):
                budget.walk([part for part in value if isinstance(part, list | tuple | dict)])
    if name in _MAKERS:
        budget.step(_made(name, subject, values))


def check_result(budget: Budget, value: Any) -> Any:
    """Count what a call returned. The value itself."""
    if isinstance(value, str):
        if len(value) > 64:
            budget.step(len(value), 0)
    elif isinstance(value, list | tuple | dict) and len(value) > 16:
        budget.step(steps=len(value) >> 4)
    return value


def _made(name: str, subject: Any, values: tuple[Any, ...]) -> int:
    """About the characters that a call makes, where they can be many times those of its arguments."""
    texts = [value for value in (subject, *values) if isinstance(value, str)]
    if name == "join":
        sized = next(
            (
                value
                for value in (subject, *values)
                if isinstance(value, Sized) and not isinstance(value, str)
            ),
            (),
        )
        return len(sized) * max(map(len, texts), default=0)
    if name == "tojson" and any(type(value) is int and value > _MAX_INDENT for value in values):
        raise RenderingError(f"it indents JSON by more than {_MAX_INDENT}")
    if name == "sum" and not isinstance(values[-1] if values else 0, int | float):
        return (
            len(subject) ** 2 if isinstance(subject, Sized) else MAX_CHARACTERS + 1
        )  # copied at every addition
    if not isinstance(subject, str):
        return 0
    if name == "replace":
        return subject.count(texts[1]) * len(texts[2]) if len(texts) >= 3 else 0
    if name == "format":
        return _formatted(subject, "{", values)
    # A number, or the length of the longest text, as often as it is written.
    unit = max((_volume(value) for value in values), default=0)
    if name == "expandtabs":
        return unit * subject.count("\t")
    if name == "indent":
        return unit * (subject.count("\n") + 1)
    return unit * len(subject) if name == "translate" or (name == "wordwrap" and len(texts) > 1) else unit


def _formatted(text: str, mark: str, values: Any) -> int:
    """About the characters of a text with values in it. RenderingError for a huge width."""
    if _WIDTH.search(text):
        raise RenderingError("it formats a value with a huge width")
    count = text.count(mark)
    return count * max([_volume(values), *map(int, _NUMBER.findall(text))]) if count else 0


def _volume(value: Any) -> int:
    """The characters of a value and of what is in it, or a number, which may be a width."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_volume(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_volume(part) for part in value)
    return abs(value) if type(value) is int else 0


def size_of(operator: str, left: Any, right: Any) -> int:
    """Characters or elements that an operation would make. RenderingError for a huge number."""
    if operator == "+":
        return len(left) + len(right) if isinstance(left, Sized) and isinstance(right, Sized) else 0
    if operator == "%":
        if not isinstance(left, str):
            return 0
        if "*" in left:
            raise RenderingError("it formats a value with a huge width")
        return len(left) + _formatted(left, "%", right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_NUMBER:
            raise RenderingError("it computes a huge number")
        return 0
    sized, count = (left, right) if isinstance(left, Sized) else (right, left)
    return len(sized) * max(count, 0) if isinstance(sized, Sized) and isinstance(count, int) else 0
