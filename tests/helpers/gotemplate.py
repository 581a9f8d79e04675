"""As much of Go's text/template as Ollama's templates here use, and what Ollama puts into it."""

from __future__ import annotations

import re
from typing import Any

TOKEN = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
WORD = re.compile(r'"[^"]*"|[()]|[^\s()]+')
Scope = dict[str, Any]


def ollama(template: str, messages: list[dict[str, str]]) -> str:
    """The text that Ollama makes of a conversation, before its tokenizer puts the BOS in front."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    turns = [{"Role": message["role"], "Content": message["content"]} for message in messages]
    return execute(template, {"System": system, "Messages": turns})


def execute(template: str, data: dict[str, Any]) -> str:
    parts = TOKEN.split(template)  # texts at even places, actions at odd ones
    assert not any(part.startswith("-") or part.endswith("-") for part in parts[1::2]), (
        "trim markers are not known"
    )
    nodes, end = _parse(parts, 0)
    assert end == len(parts)
    return _run(nodes, data, {"$": data})


def _parse(parts: list[str], at: int) -> tuple[list[Any], int]:
    nodes: list[Any] = []
    while at < len(parts):
        if at % 2 == 0:
            nodes.append(parts[at])
        else:
            action = parts[at].strip()
            word = action.split()[0]
            if word in ("end", "else"):
                return nodes, at
            if word in ("if", "range"):
                node, at = _block(word, action.removeprefix(word).strip(), parts, at)
                nodes.append(node)
            else:
                nodes.append(("print", action))
        at += 1
    return nodes, at


def _block(word: str, condition: str, parts: list[str], at: int) -> tuple[Any, int]:
    body, at = _parse(parts, at + 1)
    action = parts[at].strip()
    if action == "end":
        return (word, condition, body, []), at
    rest = action.removeprefix("else").strip()
    if rest.startswith("if "):  # its own end is this one's
        other, at = _block("if", rest.removeprefix("if").strip(), parts, at)
        return (word, condition, body, [other]), at
    otherwise, at = _parse(parts, at + 1)
    assert parts[at].strip() == "end"
    return (word, condition, body, otherwise), at


def _run(nodes: list[Any], dot: Any, scope: Scope) -> str:
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node
        elif node[0] == "print":
            out += str(_value(node[1], dot, scope))
        elif node[0] == "if":
            out += _run(node[2] if _value(node[1], dot, scope) else node[3], dot, scope)
        else:
            names, _, expression = node[1].rpartition(":=")
            index, item = (name.strip() for name in names.split(",")) if names else ("", "")
            for number, value in enumerate(_value(expression.strip(), dot, scope)):
                out += _run(node[2], value, {**scope, index: number, item: value})
    return out


def _value(expression: str, dot: Any, scope: Scope) -> Any:
    words = WORD.findall(expression)
    value, rest = _call(words, dot, scope)
    assert not rest, expression
    return value


def _call(words: list[str], dot: Any, scope: Scope) -> tuple[Any, list[str]]:
    """The value of an operand, or of a function and its arguments up to a closing bracket."""
    arguments: list[Any] = []
    function = words[0] if words[0] in ("eq", "ne", "gt", "and", "or") else None
    words = words[1:] if function else words
    while words and words[0] != ")":
        if words[0] == "(":
            value, words = _call(words[1:], dot, scope)
            assert words[0] == ")"
            words = words[1:]
        else:
            value, words = _operand(words[0], dot, scope), words[1:]
        arguments.append(value)
    if function is None:
        (value,) = arguments
    elif function in ("and", "or"):
        first, second = arguments
        value = (first and second) if function == "and" else (first or second)
    else:
        left, right = arguments
        value = {"eq": left == right, "ne": left != right, "gt": function == "gt" and left > right}[function]
    return value, words


def _operand(word: str, dot: Any, scope: Scope) -> Any:
    if word.startswith('"'):
        return word[1:-1]
    if word.lstrip("-").isdecimal():
        return int(word)
    name, *fields = word.split(".")
    value = dot if name == "" else scope[name]
    for field in fields:
        value = value[field]
    return value
