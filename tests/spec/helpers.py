"""A small valid recipe, and the problems of a changed one."""

from __future__ import annotations

from pathlib import Path

from tailor.errors import RecipeError
from tailor.spec.load import load_recipe

GOOD = """\
model: {path: org/base}
data:
  train: [{path: hf://org/rows}]
method: {name: sft}
optim: {learning_rate: 2e-4}
save: {to: runs/x}
"""


def write(folder: Path, text: str = GOOD, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The problems of a recipe as lines, without the folder's name."""
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        return [str(problem).replace(f"{path.parent}/", "") for problem in error.problems]
    return []
