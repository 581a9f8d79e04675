"""An evaluation file, or the `evaluate.final` section of a run's recipe, with overrides -> an `Evaluation`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tailor.spec import check_suite, files
from tailor.spec.evaluation import Evaluation
from tailor.spec.layers import override
from tailor.spec.load import judge, read
from tailor.spec.source import Document, Position
from tailor.spec.suite import Suite

RULES = (check_suite.problems, files.problems_of_evaluation)


def load_evaluation(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Evaluation:
    """Reads an evaluation file. Raises RecipeError with every problem."""
    return judge(read(path, Evaluation, overrides), Evaluation, RULES)


def with_overrides(suite: Suite | dict[str, Any] | None, where: str, overrides: Sequence[str]) -> Evaluation:
    """An evaluation that stands in no file of its own. `where`: what messages call it."""
    values: dict[str, Any] = {}
    if isinstance(suite, Suite):
        values = suite.model_dump(mode="json", exclude_unset=True)
    elif suite is not None:
        values = suite
    document = Document(where, values, places={(): Position(where)})
    override(document, overrides)
    return judge(document, Evaluation, RULES)
