"""A draft as the YAML of a recipe, with a comment for every argument of the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from tailor.printable import printable
from tailor.spec.load import dump
from tailor.spec.moving.draft import Answer, Draft, one_line

_HEADINGS = {
    "unsupported": "Not supported, and what that changes:",
    "unneeded": "Not needed, because:",
    "unknown": "Unknown:",
}


def write(draft: Draft, file: str) -> str:
    """The recipe as text."""
    tree = draft.tree()
    lines = [
        f"# Written by `tailor import` from {printable(os.path.basename(file))} ({draft.trainer.title}).",
        "# Check it with `tailor validate`, see its memory and steps with `tailor plan`.",
    ]
    for section, values in tree.items():
        lines += ["", f"{section}:", *_mapping(values, section, 1, draft)]
    for outcome, heading in _HEADINGS.items():
        answers = [
            answer for answer in draft.answers.values() if answer.outcome == outcome and not _is_shown(answer)
        ]
        if answers:
            lines += [
                "",
                f"# {heading}",
                *(f"#   {answer.argument.shown}  -> {one_line(answer.text)}" for answer in answers),
            ]
    return "\n".join(lines) + "\n"


def _is_shown(answer: Answer) -> bool:
    """Whether the comment of a key says it all."""
    return bool(answer.keys) and answer.outcome == "taken"


def _mapping(values: dict[str, Any], path: str, depth: int, draft: Draft) -> Iterator[str]:
    indent = "  " * depth
    if not values:
        yield f"{indent}{{}}{_comment(path, draft)}"
    for key, value in values.items():
        here = f"{path}.{key}"
        if isinstance(value, dict) and value and here not in draft.values:
            yield f"{indent}{key}:"
            yield from _mapping(value, here, depth + 1, draft)
        elif here in ("data.train", "data.evaluation"):
            yield f"{indent}{key}:{_comment(here, draft)}"
            yield from (f"{indent}  - {_flow(source)}" for source in value)
        else:
            yield f"{indent}{key}: {_flow(value)}{_comment(here, draft)}"


def _flow(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and any(sign in value for sign in "{}[],#&*!|>'\"%@`:?\n"):
        return (
            json.dumps(value, ensure_ascii=False)
            if not value.startswith("hf://") or set(value) & set("{}[],#\n")
            else value
        )
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if value == 0 or 1e-3 <= abs(value) < 1e7 else f"{value:.12g}"
    return dump({"x": value})[3:].strip()


def _comment(key: str, draft: Draft) -> str:
    parts = []
    for argument in draft.origins.get(key, []):
        answer = draft.answers.get(argument.name)
        said = answer.text if answer is not None and answer.keys[:1] == [key] else ""
        parts.append(f"{argument.shown}{f' ({said})' if said else ''}")
    text = " × ".join(parts) if key.endswith("batch_size") else ", ".join(parts)
    remark = draft.remarks.get(key, "")
    whole = "; ".join(one for one in (text, remark) if one)
    return f"  # {one_line(whole)}" if whole else ""
