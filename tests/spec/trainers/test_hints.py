"""The exact hints for keys and values that users of other trainers write. `--update-fixtures` updates hints.txt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tailor.errors import RecipeError
from tailor.spec.load import judge
from tailor.spec.reading.source import parse
from tailor.spec.recipe import Recipe

HINTS = Path(__file__).parent / "hints.txt"
CASE = re.compile(r"(?P<section>[\w.]*) \| (?P<text>.*?) => (?P<said>.*)")
GOOD = {
    "model": "path: org/base",
    "data": "train: [{path: hf://org/rows}]",
    "method": "name: sft",
    "optim": "learning_rate: 2e-4",
    "save": "to: runs/x",
}


def recipe(section: str, text: str) -> str:
    """A good recipe with a text in a section, or at its first level."""
    sections = dict(GOOD)
    name, *inner = section.split(".")
    if inner:
        text = f"{inner[0]}: {{{text}}}"
    if name:
        key = text.partition(":")[0]
        kept = [sections[name]] if name in sections and not sections[name].startswith(f"{key}:") else []
        sections[name] = ", ".join([*kept, text])
    else:
        sections.pop(text.partition(":")[0], None)
    lines = [f"{one}: {{{keys}}}" for one, keys in sections.items()]
    return "\n".join([*lines, *([] if name else [text])]) + "\n"


def said(section: str, text: str) -> str:
    try:
        judge(parse(recipe(section, text), "r.yaml"), Recipe)
    except RecipeError as error:
        return " / ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
    return "ok"


def cases() -> list[re.Match[str]]:
    found = [CASE.fullmatch(line) for line in HINTS.read_text().splitlines() if line]
    assert all(found)
    return [case for case in found if case]


def test_hints(request: pytest.FixtureRequest) -> None:
    """Each line: section | what is written there => what is said."""
    lines = [
        f"{case['section']} | {case['text']} => {said(case['section'], case['text'])}" for case in cases()
    ]
    if request.config.getoption("--update-fixtures"):
        HINTS.write_text("\n".join(lines) + "\n")
    assert lines == HINTS.read_text().splitlines()
    assert len(lines) >= 60


def test_hints_name_keys_that_exist() -> None:
    """What a hint says to write is accepted where it says so: no relation is invented."""
    for case in cases():
        if match := re.search(
            r"(?:it belongs at|write) ([a-z_]+(?:\.[a-z_]+)+)(?:: (\{.*?\}|[\w-]+))?(?: |;|$)", case["said"]
        ):
            section, _, rest = match[1].partition(".")
            inner = rest.split(".")
            value = match[2] or "???"
            text = ""
            for step in reversed(inner[1:]):
                value = f"{{{step}: {value}}}"
            text = f"{inner[0]}: {value}"
            assert "unknown" not in said(section, text), (case["text"], said(section, text))


def test_an_invented_key_is_seen() -> None:
    """Control of the test above."""
    assert "unknown key" in said("optim", "optimiser_name_x: adamw")
    assert said("optim", "optimizer: adamw") == "ok"
