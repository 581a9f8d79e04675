"""Jinja chat templates compiled as transformers compiles them, with limits on the work and the memory of a rendering.

A template is a program that comes with a model, and it runs in this process. Limits count work, not seconds, so
that the same rows are kept on a slow machine. A limit on CPU time remains for what the count does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any

import jinja2
from jinja2 import nodes

from tailor.encode.template_costs import (
    COMPARERS,
    MAX_CHARACTERS,
    STEPS_OF_CALL,
    WRITERS,
    Budget,
    RenderingError,
    check_call,
    check_result,
    size_of,
)

_NUMBERS_OF_LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length")
_OPERATORS = frozenset({"+", "*", "**", "%"})


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
    _walk_compared(environment, tree)
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


def _walk_compared(environment: Any, tree: nodes.Template) -> None:
    """Count the parts of what is compared or hashed as a whole: lists in lists, with few parts, may take forever."""
    for compare in tree.find_all(nodes.Compare):
        for operand in (compare, *compare.ops):
            others = [one.expr for one in (compare, *compare.ops) if one is not operand]
            if not _is_constant(operand.expr) and not all(map(_is_constant, others)):
                operand.expr = _filtered(environment, operand.expr, "tailor_walked")
    for made in tree.find_all(nodes.Tuple):
        if made.ctx == "load" and not _is_constant(made):
            made.items = [
                one if _is_constant(one) else _filtered(environment, one, "tailor_walked")
                for one in made.items
            ]


def _is_constant(node: nodes.Node) -> bool:
    """Whether a value is known, or a number."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(map(_is_constant, node.items))
    if isinstance(node, nodes.Getattr):  # loop.index0
        return (
            isinstance(node.node, nodes.Name) and node.node.name == "loop" and node.attr in _NUMBERS_OF_LOOP
        )
    return isinstance(node, nodes.Const | nodes.Sub)


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
    def walked(_: Any, value: Any) -> Any:
        return value if type(value) in (str, int, bool) else budget.walk(value)

    @jinja2.pass_context
    def concat(_: Any, values: list[Any]) -> str:
        return joined(value if isinstance(value, str) else str(budget.walk(value)) for value in values)

    def joined(pieces: Iterable[str]) -> str:
        listed = list(pieces)
        budget.step(sum(map(len, listed)))
        return "".join(listed)

    def limited_call(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(function, "__name__", "")
        budget.step(steps=STEPS_OF_CALL)
        if not isinstance(function, jinja2.runtime.Macro):
            # The sandbox wraps the `format` of a text.
            bound = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            check_call(budget, name, (*args, *kwargs.values()), bound)
        return check_result(budget, call(context, function, *args, **kwargs))

    def limited_binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            # Most operations by far, so they take the short way.
            budget.step(len(left) + len(right))
            return left + right
        budget.step(size_of(operator, left, right))
        return call_binop(context, operator, left, right)

    environment.filters.update(
        {name: _limited_filter(budget, name, own) for name, own in environment.filters.items()}
    )
    environment.filters.update(tailor_counted=counted, tailor_concat=concat, tailor_walked=walked)
    environment.tests.update({name: _limited_test(budget, environment.tests[name]) for name in COMPARERS})
    # Random texts, of any length: the same row would have other tokens each time.
    environment.globals.pop("lipsum", None)
    environment.filters.pop("random", None)
    environment.intercepted_binops, environment.finalize = _OPERATORS, budget.written
    environment.call, environment.call_binop, environment.concat = limited_call, limited_binop, joined


def _limited_test(budget: Budget, function: Any) -> Any:
    def limited(*args: Any) -> Any:
        budget.walk(args)
        return function(*args)

    return limited


def _limited_filter(budget: Budget, name: str, function: Any) -> Any:
    import functools

    given = hasattr(function, "jinja_pass_arg")  # then the first argument is Jinja's

    # The wrapper keeps the marks by which Jinja decides what to pass.
    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        subject, *values = args[given:]
        if name in WRITERS:
            for value in args:
                budget.walk(value)
        check_call(budget, name, (*values, *kwargs.values()), subject)
        return check_result(budget, function(*args, **kwargs))

    return limited
