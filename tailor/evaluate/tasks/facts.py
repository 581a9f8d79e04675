"""The share of a question's facts that its generated answer states."""

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
from tailor.evaluate.task_inputs import Collected, TaskInputs, question_inputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.evaluate.words import contains, fact_words
from tailor.layout import FACTS
from tailor.spec.tasks.questions import Facts
from tailor.spec.tasks.rows import Questions

PART = "facts"
Fact = tuple[str, ...]
"""Ways to say a fact, one of which is enough."""


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

    def judge(self, inputs: TaskInputs, found: Collected) -> Outcome:
        shares, rows = [], []
        answers = found.answers(PART, len(inputs.rows), inputs.tokenizer)
        for one, answer in zip(inputs.rows, answers, strict=True):
            stated = facts_found(answer, one.facts)
            shares.append(sum(stated) / len(stated))
            shared = {
                **one.place,
                "prompt": one.question,
                "rendered": one.rendered,
                "facts": [list(ways) for ways in one.facts],
            }
            rows.append((shared, {"answer": answer, "found": stated, "facts": shares[-1]}))
        return Outcome({"facts": mean(shares)}, FACTS, rows)


def facts_found(answer: str, facts: Sequence[Fact]) -> list[bool]:
    """Per fact, whether the answer states it in one of its ways, whatever case, punctuation and spaces are."""
    given = fact_words(answer)
    return [any(contains(given, fact_words(way)) for way in fact) for fact in facts]


def fact_questions(data: Questions, where: str, tokenizer: Tokenizer, *, plain: bool) -> list[FactQuestion]:
    """The rows of a question set with facts. `plain`: the question goes without a chat template."""
    found = []
    for one, row, place in questions_of(data, where, tokenizer, ("facts",), plain=plain):
        facts = tuple(_fact(value, place) for value in list_of(row["facts"], "facts", place))
        found.append(FactQuestion(one.place, one.prompt, one.question, one.rendered, facts=facts))
    return found


def _fact(value: Any, place: str) -> Fact:
    """A fact: a text, or a list of texts of which one is enough."""
    ways = value if isinstance(value, list) and value else [value]
    texts = tuple(text_of(way, "facts", place) for way in ways)
    for text in texts:
        if not fact_words(text):  # it would stand in every answer
            raise DataError(f"{place}: the fact {text!r} has no letter and no digit")
    return texts
