"""Jinja chat templates compiled as transformers compiles them, with limits on the work and the memory of a rendering.

A template is a program that comes with a model, and it runs in this process. Limits count work, not seconds, so
that the same rows are kept on a slow machine. A limit on CPU time remains for what the count does not see.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import lru_cache
from types import FunctionType
from typing import Any

import jinja2
from jinja2 import nodes

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
_STEPS_OF_CALL = 10
_CHECK_TIME_EVERY = 1024
_WRITERS = ("string", "tojson", "join", "pprint", "escape", "e", "urlencode", "xmlattr")
"""Filters that write whole containers, whose parts may be one and the same many times over."""
_WIDTH = re.compile(r"\d{7,}")
_OPERATORS = frozenset({"+", "*", "**", "%"})


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
            for part in (*value, *value.values()) if isinstance(value, dict) else value:
                self.walk(part)
        else:
            self.step()
        return value


class Rendering:
    """A compiled template and its limits. Not for two threads at once."""

    def __init__(self, text: str, date: str | None) -> None:
        """date: ISO date that `strftime_now` writes; None for today's."""
        from transformers.utils import chat_template_utils as theirs

        # Not the cached one: its environment is changed below.
        environment = theirs._compile_jinja_template.__wrapped__("").environment
        self._budget = Budget()
        _limit(environment, self._budget)
        if date is not None:
            environment.globals["strftime_now"] = _at(date)
        compiled = _compiled(environment, text, self._budget)
        # Their function with this template in place of the one that it would compile: what else it does to
        # messages and tools differs between versions, and must be what other tools do.
        function = theirs.render_jinja_template
        names = {**function.__globals__, "_compile_jinja_template": lambda _: compiled}
        self._render: Callable[..., Any] = FunctionType(
            function.__code__, names, None, function.__defaults__, function.__closure__
        )
        self._render.__kwdefaults__ = function.__kwdefaults__
        self._text = text

    def __call__(self, *, max_steps: int, **options: Any) -> Any:
        self._budget.begin(max_steps)
        return self._render(chat_template=self._text, **options)


@lru_cache(maxsize=16)
def rendering(text: str, date: str | None) -> Rendering:
    """The compiled template. RenderingError or jinja2.TemplateSyntaxError when it cannot be compiled."""
    try:
        return Rendering(text, date)
    except jinja2.TemplateError:
        raise
    except Exception as error:
        raise RenderingError(described(error)) from error


def described(error: Exception) -> str:
    """An error's kind and message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _at(date: str) -> Callable[[str], str]:
    from datetime import datetime

    moment = datetime.fromisoformat(date)
    return lambda form: moment.strftime(form)


def _compiled(environment: Any, text: str, budget: Budget) -> Any:
    tree = environment.parse(text)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filtered(environment, loop.iter, "tailor_counted")
    _replace_concat(environment, tree)
    code = environment.compile(tree, None, None)
    template = environment.template_class.from_code(environment, code, dict(environment.globals), None)
    root = template.root_render_func

    def bounded(context: Any) -> Iterator[str]:
        total = 0
        for piece in root(context):
            total += len(piece)
            if total > MAX_CHARACTERS:
                budget.step(total)
            yield piece

    template.root_render_func = bounded
    return template


def _filtered(environment: Any, node: nodes.Expr, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(node.lineno).set_environment(environment)
    return made


def _replace_concat(environment: Any, node: nodes.Node) -> None:
    """`a ~ b` as a call of a filter, for it is no operator that the sandbox hands over."""
    for field, value in node.iter_fields():
        values = value if isinstance(value, list) else [value]
        for at, child in enumerate(values):
            if not isinstance(child, nodes.Node):
                continue
            _replace_concat(environment, child)
            if isinstance(child, nodes.Concat):
                listed = nodes.List(child.nodes)
                listed.set_lineno(child.lineno).set_environment(environment)
                made = _filtered(environment, listed, "tailor_concat")
                if isinstance(value, list):
                    value[at] = made
                else:
                    setattr(node, field, made)


class _Counted:
    """An iterable whose iterations are steps. Its length stays known to `loop.length`."""

    def __init__(self, inner: Any, budget: Budget) -> None:
        self._inner, self._budget = inner, budget

    def __iter__(self) -> Iterator[Any]:
        step = self._budget.step
        for value in self._inner:
            step()
            yield value

    def __len__(self) -> int:
        return len(self._inner)


def _limit(environment: Any, budget: Budget) -> None:
    """Put the budget into what compiled templates call: loops, operators, joins, filters and functions."""
    call, call_binop = environment.call, environment.call_binop

    @jinja2.pass_context
    def counted(_: Any, values: Any) -> _Counted:
        return _Counted(values, budget)

    @jinja2.pass_context
    def concat(_: Any, values: list[Any]) -> str:
        return joined(value if isinstance(value, str) else str(budget.walk(value)) for value in values)

    def joined(pieces: Iterable[str]) -> str:
        listed = list(pieces)
        budget.step(sum(map(len, listed)))
        return "".join(listed)

    def limited_call(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(function, "__name__", "")
        budget.step(steps=_STEPS_OF_CALL)
        if not isinstance(function, jinja2.runtime.Macro):
            # The sandbox wraps the `format` of a text.
            bound = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            _check(budget, name, (*args, *kwargs.values()), bound)
        return call(context, function, *args, **kwargs)

    def limited_binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            # Most operations by far, so they take the short way.
            budget.step(len(left) + len(right))
            return left + right
        budget.step(_size_of(operator, left, right))
        return call_binop(context, operator, left, right)

    environment.filters.update(
        {name: _limited_filter(budget, name, own) for name, own in environment.filters.items()}
    )
    environment.filters.update(tailor_counted=counted, tailor_concat=concat)
    environment.intercepted_binops, environment.finalize = _OPERATORS, budget.written
    environment.call, environment.call_binop, environment.concat = limited_call, limited_binop, joined


def _limited_filter(budget: Budget, name: str, function: Any) -> Any:
    import functools

    # The wrapper keeps the marks by which Jinja decides what to pass.
    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        if name in _WRITERS:
            for value in args:
                budget.walk(value)
        _check(budget, name, (*args[1:], *kwargs.values()), args[0] if args else None)
        return function(*args, **kwargs)

    return limited


def _check(budget: Budget, name: str, values: tuple[Any, ...], subject: Any) -> None:
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
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        budget.step(text.count(old) * len(new))
    elif name == "join":
        sized = next(
            (value for value in every if isinstance(value, Sized) and not isinstance(value, str)), ()
        )
        budget.step(len(sized) * max(map(len, texts), default=0))
    elif name == "format" and any(_WIDTH.search(text) for text in texts):
        raise RenderingError("it formats a value with a huge width")


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Characters or elements that an operation would make. RenderingError for a huge number."""
    if operator == "+":
        return len(left) + len(right) if isinstance(left, Sized) and isinstance(right, Sized) else 0
    if operator == "%":
        if isinstance(left, str) and (_WIDTH.search(left) or "*" in left):
            raise RenderingError("it formats a value with a huge width")
        return len(left) if isinstance(left, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_NUMBER:
            raise RenderingError("it computes a huge number")
        return 0
    sized, count = (left, right) if isinstance(left, Sized) else (right, left)
    return len(sized) * max(count, 0) if isinstance(sized, Sized) and isinstance(count, int) else 0
