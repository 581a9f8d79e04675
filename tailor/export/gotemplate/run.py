"""Executes a Go template as the package text/template of Go does.

The values are those of `functions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.errors import TemplateError
from tailor.export.gotemplate.functions import MAX_TEXT, Struct, call, kind, printed, truth
from tailor.export.gotemplate.parse import Action, Block, Function, Jump, Literal, Node, Operand, Pipe, Term

MAX_NODES = 200_000
"""Nodes that one execution may run: templates of chats need a few thousand."""


class _JumpOut(Exception):
    """`break` or `continue`."""


@dataclass
class _Run:
    out: list[str] = field(default_factory=list)
    length: int = 0
    variables: list[tuple[str, Any]] = field(default_factory=list)
    left: int = MAX_NODES

    def nodes(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            self.left -= 1
            if self.left < 0:
                raise TemplateError("the Go template takes too long")
            if isinstance(node, str):
                self.write(node)
            elif isinstance(node, Action):
                value = self.pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self.write(printed(value))
            elif isinstance(node, Jump):
                raise _JumpOut(node.word)
            else:
                self.block(node, dot)

    def write(self, text: str) -> None:
        self.length += len(text)
        if self.length > MAX_TEXT:
            raise TemplateError("the Go template writes too long a text")
        self.out.append(text)

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
            raise TemplateError(f"the Go template has a range over {kind(value)}")
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
        return call(first.name, given)

    def term(self, term: Term, dot: Any) -> Any:
        if isinstance(term, Literal):
            return term.value
        if isinstance(term, Function):
            return call(term.name, [])
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


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Struct):
        if name not in value.fields:
            raise TemplateError(f"the Go template reads the field {name}, which Ollama does not have there")
        return value.fields[name]
    if isinstance(value, dict):
        return value.get(name)
    if value is None:
        raise TemplateError(f"the Go template reads the field {name} of nil")
    raise TemplateError(f"the Go template reads the field {name} of {kind(value)}")
