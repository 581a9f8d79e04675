"""A recipe file -> a `Recipe`, or every problem at once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tailor.errors import Problem, RecipeError
from tailor.spec import check, deepspeed, files, layers, secrets
from tailor.spec.base import Section
from tailor.spec.explain import explain
from tailor.spec.recipe import Recipe
from tailor.spec.source import Document, scalar

SpecT = TypeVar("SpecT", bound=Section)


def load_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, check_files: bool = True
) -> Recipe:
    """Reads a recipe and its base, applies `section.key=value` overrides and judges the whole.

    `check_files=False` does not ask whether local data, models and templates are there: for the recipe of a
    run that is over. Raises RecipeError with every problem.
    """
    document = layers.read(os.fspath(path))
    layers.override(document, overrides)
    return judge(document, Recipe, check_files=check_files)


def judge(document: Document, root: type[SpecT], *, check_files: bool = True) -> SpecT:
    """The document as an instance of the spec.

    Raises RecipeError with every problem: of the text, of single keys, of keys that conflict, of missing files.
    """
    problems = document.problems + secrets.problems(document)
    recipe: SpecT | None = None
    meant: set[str] = set()
    try:
        # As JSON, because only there does pydantic's strict mode take a list for a tuple.
        recipe = root.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        mistakes, meant = explain(error, document, root)
        problems += mistakes
    wrong = {problem.key for problem in problems} | meant
    problems += check.problems(document, wrong)
    if check_files:
        problems += files.problems(document, wrong) + deepspeed.problems(document, wrong)
    if recipe is None or problems:
        raise RecipeError(_once(problems))
    return recipe


def resolved_yaml(recipe: Recipe) -> str:
    """The complete recipe, every default that has an effect written out; it loads back to an equal Recipe."""
    values = recipe.model_dump(mode="json")
    for path in check.idle_keys(values):
        *above, key = path
        section: Any = values
        for step in above:
            section = section[step]
        del section[key]
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _once(problems: list[Problem]) -> list[Problem]:
    """One problem per place and key; the first is the one to mend first."""
    first: dict[tuple[str, int, int, str], Problem] = {}
    for problem in problems:
        first.setdefault((problem.file, problem.line, problem.column, problem.key), problem)
    return list(first.values())


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as something else, such as `2e-4`."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
