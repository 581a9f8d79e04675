"""Loads the recipe of a run that may resume although its sources are gone."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from tailor.errors import RecipeError, TailorError
from tailor.spec.load import load_recipe

if TYPE_CHECKING:
    from tailor.spec.recipe import Recipe

_SOURCE = re.compile(r"data\.(train|evaluation|decontaminate)\.\d+\.path")


def load_to_run(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Like `load_recipe`, but local sources may be missing if the run that the recipe resumes has their tokens."""
    try:
        return load_recipe(path, overrides)
    except RecipeError as error:
        if error.omitted or not all(_SOURCE.fullmatch(problem.key) for problem in error.problems):
            raise
        with suppress(TailorError):
            from tailor.onray.kept_tokens import has_tokens

            recipe = load_recipe(path, overrides, check_files=False)
            if has_tokens(recipe):
                return recipe
        raise
