"""The names of files are spelled out only in `tailor/layout.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tailor
from tailor import layout

ROOT = Path(tailor.__file__).parent
NAMES = {value for key, value in vars(layout).items() if key.isupper() and isinstance(value, str)}
WORDS = {name for name in NAMES if "." not in name} - {layout.CHECKPOINTS}
"""Folders whose names are also words of a recipe. They count as names only as part of a path."""
OTHER_FILES = {
    ("cli/init.py", layout.MODEL): "of a path in a new recipe",
    ("encode/sources.py", layout.STATE): "of a data set that datasets has saved",
    ("spec/moving/importing.py", layout.MODEL): "of a path in a new recipe",
    ("spec/trainers/common.py", layout.CHECKPOINTS): "a section of other trainers",
    ("store/copies.py", layout.LOCK): "the ending of a lock beside a copy",
    ("store/scratch.py", layout.LOCK): "the ending of a lock beside a temporary folder",
}


def literals(code: str) -> Iterator[tuple[int, str]]:
    """(line, name) of the file names in the code's strings. Docstrings and texts of several words are not names."""
    tree = ast.parse(code)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in texts:
            continue
        if len(node.value.split()) == 1:
            parts = node.value.split("/")
            known = NAMES if len(parts) > 1 else NAMES - WORDS
            yield from ((node.lineno, part) for part in parts if part in known)


def test_no_module_spells_a_name_of_the_layout() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "layout.py"
        for line, name in literals(path.read_text())
        if (str(path.relative_to(ROOT)), name) not in OTHER_FILES
    ]
    assert found == []


def test_control_names_are_found_and_texts_are_not() -> None:
    code = '"""plan.json"""\nread("plan.json")\nat = f"{run}/adapter/config.json"\nkind = "adapter"\nsay("no plan.json")\n'
    assert list(literals(code)) == [(2, "plan.json"), (3, "adapter"), (3, "config.json")]


def test_every_name_is_defined_once() -> None:
    values = [value for key, value in vars(layout).items() if key.isupper() and isinstance(value, str)]
    assert len(values) == len(NAMES)
