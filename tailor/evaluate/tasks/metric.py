"""The evaluation task `metric`: scores by a Python function of the user.

The function runs because the user named its file: in an evaluation file, or in the recipe of the run that they start. A
recipe in a run folder names none (`needs_trust`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tailor.errors import DataError, TailorError
from tailor.evaluate import source_rows
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.rows import Question
from tailor.evaluate.task_inputs import TaskInputs
from tailor.evaluate.tasks.answers import AnswerEvaluator, Measured, Scores, means
from tailor.evaluate.tasks.base import Outcome
from tailor.redaction import redacted
from tailor.spec.tasks.metric import Metric

MAX_NAMES = 100
"""Largest number of metrics of one function."""
SHOWN = 20
"""Errors that results.json names."""


class MetricEvaluator(AnswerEvaluator[Metric]):
    _rows: Sequence[Mapping[str, Any]] = ()
    """The row of the data file of each question."""

    def require(self) -> None:
        _ = self._function

    def inputs(self, rows: ModelRows) -> TaskInputs:
        inputs = rows.questions
        if not self._rows:
            key, sources = rows.sources
            self._rows = source_rows.read(sources, key, inputs.locations)
        return inputs

    def measure(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Measured:
        errors: list[dict[str, str]] = []
        scores: list[list[Scores]] = []
        for question, row, samples in zip(questions, self._rows, answers, strict=True):
            own: list[Scores] = []
            for answer in samples:
                try:
                    with redirect_stdout(sys.stderr):  # stdout is for results
                        own.append(self._scores(self._function(answer, question.reference, dict(row))))
                except (Exception, SystemExit) as error:
                    reason = redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
                    errors.append(
                        {"row": f"{question.location['file']}:{question.location['row']}", "error": reason}
                    )
                    own.append({})
            scores.append(own)
        measured = means(scores)
        if not measured.figures:
            first = f"{errors[0]['row']}: {errors[0]['error']}" if errors else "it returned None"
            raise DataError(
                f"{self.key}: {self.spec.function} scored none of {len(questions):,} rows; the first: {first}",
                hint="correct it, and run the same command again: finished batches are reused",
            )
        if len(measured.figures) > MAX_NAMES:
            raise DataError(
                f"{self.key}: {self.spec.function} returned {len(measured.figures):,} different names",
                hint=f"return the same names for each row, at most {MAX_NAMES}",
            )
        notes = []
        if errors:
            notes.append(
                f"metric: {len(errors):,} answers are left out, because {self.spec.function} failed; the first: "
                f"{errors[0]['row']}: {errors[0]['error']}"
            )
        return Measured(
            {f"metric/{name}": replace(one, is_share=False) for name, one in measured.figures.items()},
            [{f"metric/{name}": value for name, value in row.items()} for row in measured.rows],
            notes,
            {"errors": len(errors), "first_errors": errors[:SHOWN]},
        )

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """For each model, the number of answers that the function failed on, and the first of them."""
        models = {model: outcome.data for model, outcome in outcomes.items()}
        return {"metric": {"function": self.spec.function, "models": models}}

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return load(self.spec.function, f"{self.key}.function")

    def _scores(self, returned: Any) -> Scores:
        values = (
            returned if isinstance(returned, Mapping) else {self.spec.function.rpartition(":")[2]: returned}
        )
        return {str(name): None if value is None else _number(value) for name, value in values.items()}


def load(function: str, key: str) -> Callable[..., Any]:
    """The function of `FILE.py:FUNCTION`. Runs the file. key: for messages. TailorError when it cannot be used."""
    file, _, name = function.rpartition(":")
    path = Path(file).resolve()
    module_name = f"tailor_metric_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    hint = "the file is executed when the evaluation starts: correct it, and run the same command again"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules[module_name] = module  # dataclasses and pickle look the module up
    sys.path.insert(0, str(path.parent))  # for its imports of files beside it
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        reason = redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        raise TailorError(f"{key}: {file} cannot be loaded: {reason}", hint=hint) from error
    finally:
        sys.path[:] = before
    found = getattr(module, name, None)
    if not callable(found):
        known = [
            one
            for one, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module_name
        ]
        raise TailorError(
            f"{key}: {file} has no function {name}",
            hint=f"its functions are {', '.join(known)}"
            if known
            else "define it: def score(answer, reference, row)",
        )
    try:
        inspect.signature(found).bind("", "", {})
    except TypeError as error:
        raise TailorError(
            f"{key}: {name} cannot be called with (answer, reference, row): {error}",
            hint=f"define it as def {name}(answer, reference, row)",
        ) from None
    except ValueError:
        pass  # a builtin without a signature
    return found  # type: ignore[no-any-return]


def _number(value: Any) -> float:
    """A score as a float. ValueError for anything that is no finite number."""
    if hasattr(value, "item") and not isinstance(value, numbers.Number):
        value = value.item()  # a tensor or array of one element
    if not isinstance(value, numbers.Real):
        raise ValueError(f"it returned {type(value).__name__}, not a number")
    if not math.isfinite(found := float(value)):
        raise ValueError(f"it returned {found}")
    return found
