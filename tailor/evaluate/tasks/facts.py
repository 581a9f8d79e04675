"""The evaluation task `facts`: the share of a question's facts that the generated answer states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate.figures import mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import list_of, questions_of, text_of
from tailor.evaluate.rows import Question
from tailor.evaluate.task_inputs import Collected, TaskInputs, answer_fields, question_inputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.evaluate.words import contains, fact_words
from tailor.layout import FACTS
from tailor.spec.tasks.questions import Facts
from tailor.spec.tasks.rows import Questions

PART = "facts"
Fact = tuple[str, ...]
"""Wordings of a fact. One of them is enough."""


@dataclass(frozen=True)
class FactQuestion(Question):
    """A question, and the facts that its answer must state."""

    facts: tuple[Fact, ...] = ()


class FactsEvaluator(TaskEvaluator[Facts]):
    def preflight(self, rows: FirstRows) -> None:
        fact_questions(rows.of(self.spec.data), f"{self.key}.data", rows.tokenizer, plain=rows.plain)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        found = fact_questions(self.spec.data, f"{self.key}.data", rows.tokenizer, plain=rows.plain)
        return question_inputs(PART, found, rows.tokenizer)

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        shares, rows = [], []
        answers = collected.replies(PART, inputs.rows, inputs.tokenizer)
        for one, samples in zip(inputs.rows, answers, strict=True):
            stated = [facts_found(answer.text, one.facts) for answer in samples]
            shares.append(sum(map(sum, stated)) / (len(stated) * len(one.facts)))
            shared = {
                **one.location,
                "prompt": one.question,
                "rendered": one.rendered,
                "facts": [list(ways) for ways in one.facts],
            }
            rows.append((shared, {**answer_fields(samples), "found": stated[0], "facts": shares[-1]}))
        return Outcome({"facts": mean(shares)}, FACTS, rows)


def facts_found(answer: str, facts: Sequence[Fact]) -> list[bool]:
    """For each fact, whether the answer has one of its wordings. Case, punctuation and spaces are ignored."""
    given = fact_words(answer)
    return [any(contains(given, fact_words(way)) for way in fact) for fact in facts]


def fact_questions(data: Questions, key: str, tokenizer: Tokenizer, *, plain: bool) -> list[FactQuestion]:
    """The rows of a question set with facts. plain: without a chat template. DataError for a row that cannot be used."""
    found = []
    for one, row, row_id in questions_of(data, key, tokenizer, ("facts",), plain=plain):
        facts = tuple(_fact(value, row_id) for value in list_of(row["facts"], "facts", row_id))
        found.append(FactQuestion(one.location, one.prompt, one.question, one.rendered, facts=facts))
    return found


def _fact(value: Any, row_id: str) -> Fact:
    """A fact: a text, or a list of texts of which one is enough."""
    ways = value if isinstance(value, list) and value else [value]
    texts = tuple(text_of(way, "facts", row_id) for way in ways)
    for text in texts:
        if not fact_words(text):  # it would match every answer
            raise DataError(f"{row_id}: the fact {text!r} has no letters or digits to look for")
    return texts
