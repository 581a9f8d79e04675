"""Parses the part of Go's text/template that chat templates use.

Left out: `define`, `template`, `block` and complex numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tailor.errors import TemplateError
from tailor.export.gotemplate.functions import FUNCTIONS

_SPACES = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:\\.|[^"\\\n])*")|(?P<raw>`[^`]*`)|(?P<char>'(?:\\.|[^'\\\n])')"""
    r"""|(?P<number>[+-]?\d[\w.]*)|(?P<variable>\$\w*)|(?P<field>\.\w+)|(?P<dot>\.)|(?P<name>\w+)|(?P<mark>:=|[=,()|])"""
)
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})(?:\.\d{1,17})?", re.ASCII)
_ESCAPE = re.compile(r"\\(?:([0-3][0-7]{2}|x[0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S)
_SIGNS = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
}
MAX_SOURCE = 200_000
"""Characters of a template. The longest of Ollama's library has 10 000."""
_KEYWORDS = ("if", "range", "with", "else", "end", "break", "continue", "define", "template", "block")


@dataclass(frozen=True)
class Literal:
    value: Any


@dataclass(frozen=True)
class Operand:
    """A value with fields: of the dot (`root` is None), of a variable (its name), or of a pipeline in brackets."""

    root: str | Pipe | None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    name: str


Term = Literal | Operand | Function


@dataclass(frozen=True)
class Pipe:
    """Commands, each of which gets the value of the one before as its last argument. variables: what it sets."""

    commands: tuple[tuple[Term, ...], ...]
    variables: tuple[str, ...] = ()
    declares: bool = False
    """Whether the variables are new (`:=`)."""


@dataclass(frozen=True)
class Action:
    """Prints the value of a pipeline, unless it sets a variable."""

    pipe: Pipe


@dataclass(frozen=True)
class Block:
    """`if`, `range` or `with`. body and otherwise: nodes."""

    word: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Jump:
    """`break` or `continue`."""

    word: str


Node = str | Action | Block | Jump
Token = tuple[str, str]


def parse(source: str) -> tuple[Node, ...]:
    """The nodes of a template. TemplateError for one that Go would reject, and for what is left out here."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"the Go template has more than {MAX_SOURCE} characters")
    pieces = _pieces(source)
    try:
        nodes, word, _, at = _nodes(pieces, 0)
    except RecursionError:
        raise TemplateError("the Go template nests too deeply") from None
    if word is not None:
        raise TemplateError(f"the Go template has {word} without its block")
    assert at == len(pieces)
    return nodes


def _pieces(source: str) -> list[str | list[Token]]:
    """Texts, and the tokens of actions."""
    found: list[str | list[Token]] = []
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        text = text.lstrip(_SPACES) if trim else text
        if start < 0:
            found.append(text)
            return found
        at = start + 2
        if source[at : at + 1] == "-" and source[at + 1 : at + 2] in tuple(_SPACES):
            text, at = text.rstrip(_SPACES), at + 2
        found.append(text)
        if source.startswith("/*", at):
            end = source.find("*/", at)
            rest = re.compile(r"( -)?\}\}").match(source, end + 2) if end >= 0 else None
            if rest is None:
                raise TemplateError("the Go template has a comment that does not end")
            trim, at = rest.group(1) is not None, rest.end()
            continue
        tokens, at, trim = _action(source, at)
        found.append(tokens)


def _action(source: str, at: int) -> tuple[list[Token], int, bool]:
    """The tokens of an action, the position after it, and whether white space after it is dropped."""
    tokens: list[Token] = []
    while True:
        if source.startswith("}}", at):
            return tokens, at + 2, False
        if source.startswith("-}}", at) and at and source[at - 1] in _SPACES:
            return tokens, at + 3, True
        match = _TOKEN.match(source, at)
        if match is None:
            raise TemplateError(
                f"the Go template has an action that cannot be read: {source[at : at + 30]!r}"
            )
        at = match.end()
        tokens.append((str(match.lastgroup), match.group()))


def _nodes(pieces: list[str | list[Token]], at: int) -> tuple[tuple[Node, ...], str | None, list[Token], int]:
    """The nodes up to an `end` or `else`, that word, what follows it in its action, and the position of the next piece."""
    nodes: list[Node] = []
    while at < len(pieces):
        piece = pieces[at]
        at += 1
        if isinstance(piece, str):
            if piece:
                nodes.append(piece)
            continue
        tokens = _without_space(piece)
        word = tokens[0][1] if tokens and tokens[0][0] == "name" else ""
        if word in ("end", "else"):
            return tuple(nodes), word, tokens[1:], at
        if word in ("break", "continue"):
            nodes.append(Jump(word))
        elif word in ("if", "range", "with"):
            block, at = _block(word, tokens[1:], pieces, at)
            nodes.append(block)
        elif word in _KEYWORDS:
            raise TemplateError(f"the Go template uses {word}, which is not supported here")
        else:
            nodes.append(Action(_whole_pipe(tokens)))
    return tuple(nodes), None, [], at


def _block(word: str, head: list[Token], pieces: list[str | list[Token]], at: int) -> tuple[Block, int]:
    pipe = _whole_pipe(head, variables=2 if word == "range" else 1)
    body, closed, rest, at = _nodes(pieces, at)
    otherwise: tuple[Node, ...] = ()
    if closed == "else" and rest and rest[0][1] in ("if", "with"):  # `else if`: its `end` ends both
        inner, at = _block(rest[0][1], rest[1:], pieces, at)
        return Block(word, pipe, body, (inner,)), at
    if closed == "else":
        otherwise, closed, rest, at = _nodes(pieces, at)
    if closed != "end":
        raise TemplateError(f"the Go template has {word} without {{{{ end }}}}")
    return Block(word, pipe, body, otherwise), at


def _without_space(tokens: list[Token]) -> list[Token]:
    """The tokens without white space. A field after white space is one of the dot: `field` becomes `own`."""
    found: list[Token] = []
    for number, (kind, text) in enumerate(tokens):
        before = tokens[number - 1] if number else ("space", "")
        chained = before[0] in ("field", "variable", "name") or before[1] == ")"
        if kind == "field" and not chained:
            kind = "own"
        if kind != "space":
            found.append((kind, text))
    return found


def _whole_pipe(tokens: list[Token], *, variables: int = 1) -> Pipe:
    """variables: how many the pipeline may set."""
    pipe, at = _pipe(tokens, 0)
    if at != len(tokens) or not pipe.commands or len(pipe.variables) > variables:
        raise TemplateError(f"the Go template has an action that cannot be read: {_shown(tokens)}")
    return pipe


def _shown(tokens: list[Token]) -> str:
    return repr(" ".join(text for _, text in tokens)[:40])


def _pipe(tokens: list[Token], at: int) -> tuple[Pipe, int]:
    """A pipeline up to a closing bracket or the end."""
    variables: list[str] = []
    mark = next((i for i, token in enumerate(tokens[at : at + 4], at) if token[1] in (":=", "=")), None)
    declares = False
    if mark is not None and tokens[at][0] == "variable":
        variables = [text for kind, text in tokens[at:mark] if kind == "variable"]
        declares, at = tokens[mark][1] == ":=", mark + 1
    commands: list[tuple[Term, ...]] = []
    terms: list[Term] = []
    while at < len(tokens) and tokens[at][1] != ")":
        if tokens[at][1] == "|" and tokens[at][0] == "mark":
            commands.append(tuple(terms))
            terms, at = [], at + 1
            continue
        term, at = _term(tokens, at)
        terms.append(term)
    commands.append(tuple(terms))
    if not all(commands):
        raise TemplateError(f"the Go template has an action that cannot be read: {_shown(tokens)}")
    return Pipe(tuple(commands), tuple(variables), declares), at


def _unescaped(quoted: str) -> str:
    """The value of a string or a character in quotes. TemplateError for an escape that Go does not have."""

    def sign(match: re.Match[str]) -> str:
        byte, short, long, one = match.groups()
        if byte is not None:
            number = int(byte[1:], 16) if byte[0] == "x" else int(byte, 8)
            if number > 127:
                raise TemplateError(
                    f"the Go template has bytes in a text, which is not supported here: {match[0]}"
                )
        elif one is not None:
            if one not in _SIGNS and one != quoted[0]:
                raise TemplateError(f"the Go template has an escape that Go does not have: \\{one}")
            return _SIGNS.get(one, one)
        else:
            number = int(short or long, 16)
        if 0xD800 <= number < 0xE000 or number > 0x10FFFF:
            raise TemplateError(f"the Go template has an escape that is no character: {match[0]}")
        return chr(number)

    return _ESCAPE.sub(sign, quoted[1:-1])


def _term(tokens: list[Token], at: int) -> tuple[Term, int]:
    kind, text = tokens[at]
    if kind in ("string", "char"):
        value = _unescaped(text)
        if kind == "char" and len(value) != 1:
            raise TemplateError(f"the Go template has an action that cannot be read: {text}")
        return Literal(ord(value) if kind == "char" else value), at + 1
    if kind == "raw":
        return Literal(text[1:-1]), at + 1
    if kind == "number":
        if _NUMBER.fullmatch(text) is None:
            raise TemplateError(f"the Go template has a number that is not supported here: {text[:40]}")
        return Literal(float(text) if "." in text else int(text)), at + 1
    if kind == "name":
        words = {"true": True, "false": False, "nil": None}
        if text in words:
            return Literal(words[text]), at + 1
        if text not in (*FUNCTIONS, "and", "or"):
            raise TemplateError(
                f"the Go template calls {text[:40]}, which Ollama does not have, or is not supported here"
            )
        return Function(text), at + 1
    if kind == "dot":
        return Operand(None), at + 1
    root: str | Pipe | None
    fields: list[str] = []
    if kind == "variable":
        root, at = text, at + 1
    elif kind == "own":
        root, fields, at = None, [text[1:]], at + 1
    elif text == "(":
        root, at = _pipe(tokens, at + 1)
        if at >= len(tokens):
            raise TemplateError("the Go template has a bracket that does not close")
        at += 1
    else:
        raise TemplateError(f"the Go template has an action that cannot be read: {_shown(tokens[at:])}")
    while at < len(tokens) and tokens[at][0] == "field":
        fields.append(tokens[at][1][1:])
        at += 1
    return Operand(root, tuple(fields)), at
