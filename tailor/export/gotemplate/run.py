"""Executes a Go template as the package text/template of Go does.

Values: str, int, float, bool, None (nil), list, dict (a Go map), and `Struct`, which knows its fields and its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.errors import TemplateError
from tailor.export.gotemplate.parse import Action, Block, Function, Jump, Literal, Node, Operand, Pipe, Term

MAX_NODES = 1_000_000
"""Nodes that one execution may run: templates of chats need a few thousand."""


@dataclass(frozen=True)
class Struct:
    """A Go struct. text: what it prints (its String method, in Ollama always JSON); None if it has no such method."""

    fields: Mapping[str, Any]
    text: str | None = None


class _JumpOut(Exception):
    """`break` or `continue`."""


@dataclass
class _Run:
    out: list[str] = field(default_factory=list)
    variables: list[tuple[str, Any]] = field(default_factory=list)
    left: int = MAX_NODES

    def nodes(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            self.left -= 1
            if self.left < 0:
                raise TemplateError("the Go template takes too long")
            if isinstance(node, str):
                self.out.append(node)
            elif isinstance(node, Action):
                value = self.pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self.out.append(printed(value))
            elif isinstance(node, Jump):
                raise _JumpOut(node.word)
            else:
                self.block(node, dot)

    def block(self, block: Block, dot: Any) -> None:
        depth = len(self.variables)  # variables of a block end with it
        if block.word == "range":
            self.range(block, dot)
        else:
            value = self.pipe(block.pipe, dot)
            if truth(value):
                self.nodes(block.body, value if block.word == "with" else dot)
            else:
                self.nodes(block.otherwise, dot)
        del self.variables[depth:]

    def range(self, block: Block, dot: Any) -> None:
        value = self.pipe(Pipe(block.pipe.commands), dot)
        if isinstance(value, dict):
            pairs: list[tuple[Any, Any]] = sorted(value.items())
        elif isinstance(value, list):
            pairs = list(enumerate(value))
        elif value is None:
            pairs = []
        else:
            raise TemplateError(f"the Go template has a range over {_kind(value)}")
        depth = len(self.variables)
        names = block.pipe.variables
        for key, item in pairs:
            del self.variables[depth:]
            for name, one in zip(names, (item,) if len(names) == 1 else (key, item), strict=False):
                self.variables.append((name, one))
            try:
                self.nodes(block.body, item)
            except _JumpOut as jump:
                if str(jump) == "break":
                    break
        if not pairs:
            self.nodes(block.otherwise, dot)

    def pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = None
        for number, command in enumerate(pipe.commands):
            value = self.command(command, dot, [value] if number else [])
        for name in pipe.variables:
            self.set(name, value, declares=pipe.declares)
        return value

    def set(self, name: str, value: Any, *, declares: bool) -> None:
        if declares:
            self.variables.append((name, value))
            return
        for at in reversed(range(len(self.variables))):
            if self.variables[at][0] == name:
                self.variables[at] = (name, value)
                return
        raise TemplateError(f"the Go template sets the undefined variable {name}")

    def command(self, command: Sequence[Term], dot: Any, last: list[Any]) -> Any:
        first = command[0]
        if not isinstance(first, Function):
            if len(command) > 1 or last:
                raise TemplateError("the Go template passes arguments to something that is no function")
            return self.term(first, dot)
        if first.name in ("and", "or"):  # these evaluate no more than they need
            if len(command) + len(last) < 2:
                raise TemplateError(f"the Go template calls {first.name} without arguments")
            value: Any = None
            for term in (*command[1:], *map(Literal, last)):
                value = self.term(term, dot)
                if truth(value) == (first.name == "or"):
                    return value
            return value
        given = [self.term(term, dot) for term in command[1:]] + last
        return _call(first.name, given)

    def term(self, term: Term, dot: Any) -> Any:
        if isinstance(term, Literal):
            return term.value
        if isinstance(term, Function):
            return _call(term.name, [])
        return self.operand(term, dot)

    def operand(self, operand: Operand, dot: Any) -> Any:
        if operand.root is None:
            value = dot
        elif isinstance(operand.root, Pipe):
            value = self.pipe(operand.root, dot)
        else:
            value = self.variable(operand.root)
        for name in operand.fields:
            value = _field(value, name)
        return value

    def variable(self, name: str) -> Any:
        for known, value in reversed(self.variables):
            if known == name:
                return value
        raise TemplateError(f"the Go template has the undefined variable {name}")


def execute(nodes: Sequence[Node], data: Mapping[str, Any]) -> str:
    """The text of a parsed template for `data`, a Go map. TemplateError when Go would stop with an error."""
    run = _Run(variables=[("$", dict(data))])
    try:
        run.nodes(nodes, dict(data))
    except _JumpOut as jump:
        raise TemplateError(f"the Go template has {jump} outside of a range") from None
    except RecursionError:
        raise TemplateError("the Go template nests too deeply") from None
    return "".join(run.out)


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
    raise TemplateError(f"the Go template prints {_kind(value)}")


def to_json(value: Any) -> str:
    """A value as Go's json.Marshal writes it: compact, keys of maps sorted, and `<`, `>` and `&` escaped."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda match: escapes[match.group()], text)


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return json.loads(value.text) if value.text is not None else {}
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    return {dict: "a map", list: "a list", Struct: "a struct", float: "a float"}.get(
        type(value), type(value).__name__
    )


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Struct):
        if name not in value.fields:
            raise TemplateError(f"the Go template reads the field {name}, which Ollama does not have there")
        return value.fields[name]
    if isinstance(value, dict):
        return value.get(name)
    if value is None:
        raise TemplateError(f"the Go template reads the field {name} of nil")
    raise TemplateError(f"the Go template reads the field {name} of {_kind(value)}")


def _call(name: str, given: list[Any]) -> Any:
    function = _FUNCTIONS.get(name)
    if function is None:
        raise TemplateError(
            f"the Go template calls {name}, which Ollama does not have, or is not supported here"
        )
    try:
        return function(*given)
    except (TypeError, IndexError, KeyError, ValueError) as error:
        raise TemplateError(
            f"the Go template calls {name} with other arguments than it takes: {error}"
        ) from None


def _equal(first: Any, second: Any, *others: Any) -> bool:
    others = (second, *others)
    return any(_same_kind(first, other) and first == other for other in others)


def _same_kind(first: Any, second: Any) -> bool:
    """ValueError when Go does not compare the two."""
    if first is None or second is None:
        return True
    kinds = [bool if isinstance(one, bool) else type(one) for one in (first, second)]
    if kinds[0] is not kinds[1] or kinds[0] not in (bool, int, float, str):
        raise ValueError("these cannot be compared")
    return True


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def function(first: Any, second: Any) -> bool:
        _same_kind(first, second)
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
            raise TypeError(f"index of {_kind(value)}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    start, end = [*bounds, *(0, len(value))[len(bounds) :]][:2]
    if not isinstance(value, list | str) or not 0 <= start <= end <= len(value):
        raise IndexError(f"no part {start}:{end}")
    return value[start:end]


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


_FUNCTIONS: dict[str, Callable[..., Any]] = {
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
}
