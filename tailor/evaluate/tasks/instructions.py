"""The evaluation task `instructions`: checks of answers that need no judge (IFEval, Zhou et al. 2023, arXiv 2311.07911).

Only checks that work in every language are here. They are strict: the answer is checked as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import list_of, questions_of
from tailor.evaluate.rows import Question
from tailor.evaluate.task_inputs import Collected, TaskInputs, answer_fields, question_inputs
from tailor.evaluate.tasks.answers import Scores, means
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.evaluate.words import words
from tailor.spec.tasks.instructions import Instructions
from tailor.spec.tasks.rows import Questions

PART = "instructions"
Check = Callable[[str], bool]
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE)
COUNTS: Mapping[str, Callable[[str], int]] = {
    "words": lambda text: len(words(text)),
    "characters": lambda text: len(text.strip()),
    "lines": lambda text: sum(bool(line.strip()) for line in text.splitlines()),
    "paragraphs": lambda text: sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text)),
    "bullets": lambda text: len(_BULLET.findall(text)),
}
"""What is counted in an answer, for the checks with `min` and `max`."""


@dataclass(frozen=True)
class InstructionQuestion(Question):
    """A question, and what its answer must fulfill: (the check as in the row, its function)."""

    checks: tuple[tuple[Any, Check], ...] = ()


class InstructionsEvaluator(TaskEvaluator[Instructions]):
    def preflight(self, rows: FirstRows) -> None:
        instruction_questions(rows.of(self.spec.data), f"{self.key}.data", rows.tokenizer, plain=rows.plain)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        found = instruction_questions(self.spec.data, f"{self.key}.data", rows.tokenizer, plain=rows.plain)
        return question_inputs(PART, found, rows.tokenizer)

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        answers = collected.replies(PART, inputs.rows, inputs.tokenizer)
        passed = [
            [[check(answer.text) for _, check in one.checks] for answer in samples]
            for one, samples in zip(inputs.rows, answers, strict=True)
        ]
        scores: list[list[Scores]] = [
            [
                {"instructions_strict": float(all(own)), "instructions_followed": sum(own) / len(own)}
                for own in samples
            ]
            for samples in passed
        ]
        measured = means(scores, self.spec.binary)
        rows = [
            (
                {
                    **one.location,
                    "prompt": one.question,
                    "rendered": one.rendered,
                    "checks": [check for check, _ in one.checks],
                },
                {**answer_fields(samples), "passed": own[0], **score},
            )
            for one, samples, own, score in zip(inputs.rows, answers, passed, measured.rows, strict=True)
        ]
        return Outcome(measured.figures, "instructions.jsonl", rows)


def instruction_questions(
    data: Questions, key: str, tokenizer: Tokenizer, *, plain: bool
) -> list[InstructionQuestion]:
    """The rows of a question set with checks. plain: without a chat template. DataError for a row that cannot be used."""
    found = []
    for one, row, row_id in questions_of(data, key, tokenizer, ("checks",), plain=plain):
        checks = tuple((value, check_of(value, row_id)) for value in list_of(row["checks"], "checks", row_id))
        found.append(InstructionQuestion(one.location, one.prompt, one.question, one.rendered, checks=checks))
    return found


def check_of(value: Any, row_id: str) -> Check:
    """The function of a check such as `{"words": {"max": 50}}`. DataError for one that does not exist."""
    given = _without_nulls(value)
    if given is None or len(given) != 1:
        raise DataError(
            f'{row_id}: `checks` must have mappings with one check each, such as {{"json": true}}'
        )
    ((name, setting),) = given.items()
    if name not in COUNTS and name not in _CHECKS:
        raise DataError(
            f"{row_id}: unknown check {name}", hint=f"the checks are {', '.join([*COUNTS, *_CHECKS])}"
        )
    made = _count(name, setting) if name in COUNTS else _CHECKS[name](setting)
    if made is None:
        raise DataError(
            f"{row_id}: the check {name} has a wrong value: {json.dumps(setting, default=str)[:80]}",
            hint="docs/evaluation-reference.md lists the checks and their values",
        )
    return made


def is_json(answer: str) -> bool:
    """Whether an answer is one JSON value, also inside one Markdown code block."""
    block = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", answer, re.DOTALL)
    try:
        json.loads(block[1] if block is not None else answer)
    except (ValueError, RecursionError):
        return False
    return True


def _count(name: str, setting: Any) -> Check | None:
    bounds = _without_nulls(setting)
    if not bounds or not set(bounds) <= {"min", "max"} or not all(map(_is_count, bounds.values())):
        return None
    low, high, count = bounds.get("min", 0), bounds.get("max", math.inf), COUNTS[name]
    return lambda answer: low <= count(answer) <= high


def _contains(setting: Any) -> Check | None:
    return (
        None
        if (texts := _texts(setting)) is None
        else lambda answer: all(one in answer.casefold() for one in texts)
    )


def _excludes(setting: Any) -> Check | None:
    return (
        None
        if (texts := _texts(setting)) is None
        else lambda answer: not any(one in answer.casefold() for one in texts)
    )


def _starts_with(setting: Any) -> Check | None:
    return (lambda answer: answer.strip().startswith(setting)) if _is_text(setting) else None


def _ends_with(setting: Any) -> Check | None:
    return (lambda answer: answer.strip().endswith(setting)) if _is_text(setting) else None


def _case(setting: Any) -> Check | None:
    """All letters of the case. An answer without letters that have a case does not pass."""
    return {"upper": str.isupper, "lower": str.islower}.get(setting) if isinstance(setting, str) else None


def _json(setting: Any) -> Check | None:
    return is_json if setting is True else None


_CHECKS: Mapping[str, Callable[[Any], Check | None]] = {
    "contains": _contains,
    "excludes": _excludes,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "case": _case,
    "json": _json,
}


def _without_nulls(value: Any) -> dict[str, Any] | None:
    """A mapping without its nulls: a Parquet column of mappings has every key in every row. None for anything else."""
    if not isinstance(value, Mapping):
        return None
    return {str(key): one for key, one in value.items() if one is not None}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _texts(setting: Any) -> list[str] | None:
    """A list of texts, in any case. None for anything else."""
    if not isinstance(setting, Sequence) or isinstance(setting, str) or not setting:
        return None
    return [one.casefold() for one in setting] if all(map(_is_text, setting)) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
