"""Markdown of a model card: tables and collapsible sections."""

from __future__ import annotations

from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def folded(title: str, language: str, text: str) -> str:
    """A collapsible code block."""
    return f"<details><summary>{title}</summary>\n\n```{language}\n{text.rstrip()}\n```\n\n</details>\n"


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
