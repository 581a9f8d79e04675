"""Markdown of a model card: foreign text in it, tables and collapsible sections.

Values of a card come from recipes, rows and models. None may add markup, raw HTML, secrets or local paths.
"""

from __future__ import annotations

import html
import re
from typing import Any

from tailor.printable import printable
from tailor.redaction import redacted

_MARKUP = re.compile(r"[\\`*\[\]|~]")
_PATH = re.compile(
    r"""(?<![\w.:/~<>@%-])(?:file://)?(?:~?/|[A-Za-z]:\\)(?:[^\s/\\"'`<>|,;()\[\]{}]+[/\\])+([^\s/\\"'`<>|,;:()\[\]{}]*)"""
)
"""A local path of two parts or more, from the root or the home folder."""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table. Its cells are plain text."""
    lines = [head, ["---"] * len(head), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def block(language: str, text: str) -> str:
    """A code block. Its fences are longer than any run of backticks in the text."""
    text = printable(redacted(text), lines=True).rstrip()
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def folded(title: str, language: str, text: str) -> str:
    """A collapsible code block."""
    return f"<details><summary>{html.escape(title)}</summary>\n\n{block(language, text)}\n</details>\n"


def inline(text: Any) -> str:
    """Plain text inside a line or a table cell."""
    line = printable(redacted(" ".join(str(text).split())))
    return _MARKUP.sub(r"\\\g<0>", html.escape(line, quote=False))


def code(text: Any) -> str:
    """Text as a code span."""
    line = printable(redacted(" ".join(str(text).split())))
    run = _longest_run(line)
    if not run:
        return f"`{line}`"
    marks = "`" * (run + 1)
    return f"{marks} {line} {marks}"


def without_local_paths(value: Any) -> Any:
    """Values with the last part alone of every local path: the folders of a machine are of no use to readers.

    A text that starts as a path is one as a whole, spaces included.
    """
    if isinstance(value, dict):
        return {key: without_local_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if re.match(r"(?:file://)?(?:~?/|[A-Za-z]:\\)[^\n]*$", value) and ": " not in value:
        return "…/" + (re.split(r"[/\\]", value.rstrip("/\\"))[-1])
    return _PATH.sub(r"…/\1", value)


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
