"""Read a recipe (or another file) into its spec class, or raise RecipeError with every problem."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

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
"""Function (document, keys that are wrong already) -> the further problems of the document."""
RULES: tuple[Rule, ...] = (
    recipe_rules.problems,
    files.problems,
    files.problems_of_earlier_runs,
    deepspeed.problems,
)
"""The rules of recipes. All but the first look at files."""


def load_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, check_files: bool = True
) -> Recipe:
    """Read a recipe and its base, apply `section.key=value` overrides, and validate the result.

    check_files: False skips the checks that local data, models and templates exist, for the recipe of a finished run.

    Raises RecipeError with every problem.
    """
    return judge(read(path, Recipe, overrides), Recipe, RULES if check_files else RULES[:1])


def check_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Like `load_recipe`, but a run that this one starts from may be missing if a recipe beside this one makes it.

    Returns the recipe, and the files of the recipes to run first.
    """
    document = read(path, Recipe, overrides)
    strict, lenient = files.problems_of_earlier_runs, files.problems_of_unknown_runs
    recipe = judge(document, Recipe, [lenient if rule is strict else rule for rule in RULES])
    return recipe, files.recipes_to_run_first(document)


def read(path: str | os.PathLike[str], root: type[File], overrides: Sequence[str] = ()) -> Document:
    """Read a file on top of its base and apply the overrides. The result is not validated yet."""
    document = read_layers(os.fspath(path), root)
    override(document, overrides)
    if root is Recipe:
        recipe_rules.replace_twins(document)
    return document


def judge(document: Document, root: type[FileT], rules: Sequence[Rule] = RULES) -> FileT:
    """Validate a document and return it as an instance of the spec.

    Raises RecipeError with every problem: of the YAML text, of single keys, and of the rules between keys.
    """
    problems = document.problems + secrets.problems(document, root.secrets_location)
    found: FileT | None = None
    intended: set[str] = set()
    try:
        # As JSON: pydantic's strict mode accepts a list for a tuple only in JSON input.
        found = root.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        mistakes, intended = explain(error, document, root)
        problems += mistakes
    problems += secrets.key_problems(document, root.secrets_location)
    wrong = {problem.key for problem in problems} | intended
    for rule in rules:
        problems += rule(document, wrong)
    if found is None or problems:
        raise RecipeError(_once(problems))
    return found


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, with every default that has an effect. It loads back to an equal Recipe."""
    values = recipe.model_dump(mode="json")
    _drop_unset_splits(recipe, values)
    for path in recipe_rules.unused_keys(values):
        *above, key = path
        section: Any = values
        for step in above:
            section = section[step]
        del section[key]
    return dump(values)


def _drop_unset_splits(part: Any, values: Any) -> None:
    """Remove each `split` that is not set. For files, asking for `train` is not the same as asking for no split."""
    if isinstance(part, list):
        for item, written in zip(part, values, strict=True):
            _drop_unset_splits(item, written)
    elif isinstance(part, BaseModel):
        for name in type(part).model_fields:
            if name == "split" and name not in part.model_fields_set:
                del values[name]
            elif name in values:
                _drop_unset_splits(getattr(part, name), values[name])


def dump(values: dict[str, Any]) -> str:
    """Plain values as the YAML of a recipe, which `parse` reads back."""
    text: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _once(problems: list[Problem]) -> list[Problem]:
    """Keep one problem per position and key. The first one has to be fixed first."""
    first: dict[tuple[str, int, int, str], Problem] = {}
    for problem in problems:
        first.setdefault((problem.file, problem.line, problem.column, problem.key), problem)
    return list(first.values())


class Dumper(yaml.SafeDumper):
    """YAML dumper that quotes text which YAML 1.2 would read as another type, such as `2e-4`."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, represent_text)


EVALUATION_RULES = (suite_rules.problems, files.problems_of_evaluation)


def load_evaluation(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Evaluation:
    """Read and validate an evaluation file. Raises RecipeError with every problem."""
    return judge(read(path, Evaluation, overrides), Evaluation, EVALUATION_RULES)


def with_overrides(suite: Suite | dict[str, Any] | None, source: str, overrides: Sequence[str]) -> Evaluation:
    """Validate an evaluation that is not in a file of its own. source: its name in messages."""
    values: dict[str, Any] = {}
    if isinstance(suite, Suite):
        values = suite.model_dump(mode="json", exclude_unset=True)
    elif suite is not None:
        values = suite
    document = Document(source, values, positions={(): Position(source)})
    override(document, overrides)
    return judge(document, Evaluation, EVALUATION_RULES)
