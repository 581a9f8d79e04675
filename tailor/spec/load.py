"""A recipe file (or another) -> a `Recipe` (or another spec), or every problem at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tailor.errors import Problem, RecipeError
from tailor.spec.base import File
from tailor.spec.evaluation import Evaluation
from tailor.spec.reading import secrets
from tailor.spec.reading.explain import explain
from tailor.spec.reading.overrides import override, read_layers
from tailor.spec.reading.source import Document, Position, scalar
from tailor.spec.recipe import Recipe
from tailor.spec.rules import deepspeed, files
from tailor.spec.rules import recipe as recipe_rules
from tailor.spec.rules import suite as suite_rules
from tailor.spec.suite import Suite

FileT = TypeVar("FileT", bound=File)

Rule = Callable[[Document, set[str]], list[Problem]]
"""What is wrong with a document, beside the keys that have a problem already."""
RULES: tuple[Rule, ...] = (recipe_rules.problems, files.problems, deepspeed.problems)
"""Those of recipes. All but the first ask for files."""


def load_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, check_files: bool = True
) -> Recipe:
    """Reads a recipe and its base, applies `section.key=value` overrides and judges the whole.

    `check_files=False` does not ask whether local data, models and templates are there: for the recipe of a
    run that is over. Raises RecipeError with every problem.
    """
    return judge(read(path, Recipe, overrides), Recipe, RULES if check_files else RULES[:1])


def read(path: str | os.PathLike[str], root: type[File], overrides: Sequence[str] = ()) -> Document:
    """A file's values on top of its base's, with the overrides, and not judged yet."""
    document = read_layers(os.fspath(path), root)
    override(document, overrides)
    return document


def judge(document: Document, root: type[FileT], rules: Sequence[Rule] = RULES) -> FileT:
    """The document as an instance of the spec.

    Raises RecipeError with every problem: of the text, of single keys, of the rules.
    """
    problems = document.problems + secrets.problems(document, root.where_secrets_stand)
    found: FileT | None = None
    meant: set[str] = set()
    try:
        # As JSON, because only there does pydantic's strict mode take a list for a tuple.
        found = root.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        mistakes, meant = explain(error, document, root)
        problems += mistakes
    wrong = {problem.key for problem in problems} | meant
    for rule in rules:
        problems += rule(document, wrong)
    if found is None or problems:
        raise RecipeError(_once(problems))
    return found


def resolved_yaml(recipe: Recipe) -> str:
    """The complete recipe, every default that has an effect written out; it loads back to an equal Recipe."""
    values = recipe.model_dump(mode="json")
    for path in recipe_rules.unused_keys(values):
        *above, key = path
        section: Any = values
        for step in above:
            section = section[step]
        del section[key]
    text: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _once(problems: list[Problem]) -> list[Problem]:
    """One problem per place and key; the first is the one to fix first."""
    first: dict[tuple[str, int, int, str], Problem] = {}
    for problem in problems:
        first.setdefault((problem.file, problem.line, problem.column, problem.key), problem)
    return list(first.values())


class Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as something else, such as `2e-4`."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, represent_text)


EVALUATION_RULES = (suite_rules.problems, files.problems_of_evaluation)


def load_evaluation(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Evaluation:
    """Reads an evaluation file. Raises RecipeError with every problem."""
    return judge(read(path, Evaluation, overrides), Evaluation, EVALUATION_RULES)


def with_overrides(suite: Suite | dict[str, Any] | None, where: str, overrides: Sequence[str]) -> Evaluation:
    """An evaluation that stands in no file of its own. `where`: what messages call it."""
    values: dict[str, Any] = {}
    if isinstance(suite, Suite):
        values = suite.model_dump(mode="json", exclude_unset=True)
    elif suite is not None:
        values = suite
    document = Document(where, values, places={(): Position(where)})
    override(document, overrides)
    return judge(document, Evaluation, EVALUATION_RULES)
