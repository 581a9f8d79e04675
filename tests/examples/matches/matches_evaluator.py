"""The evaluation of `matches`: its rows, and the score of each answer."""

import re
from dataclasses import replace

from matches_task import Matches

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import questions_of
from tailor.evaluate.rows import Question
from tailor.evaluate.task_inputs import TaskInputs, question_inputs
from tailor.evaluate.tasks.answers import AnswerEvaluator
from tailor.evaluate.tasks.base import FirstRows
from tailor.spec.tasks.rows import Questions


class MatchesEvaluator(AnswerEvaluator[Matches]):
    part, file = "matches", "matches.jsonl"

    def preflight(self, rows: FirstRows) -> None:
        self._read(rows.of(self.spec.data), rows.tokenizer, plain=rows.plain)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        questions = self._read(self.spec.data, rows.tokenizer, plain=rows.plain)
        return question_inputs(self.part, questions, rows.tokenizer)

    def score(self, answer: str, reference: str) -> dict[str, float]:
        match = re.fullmatch if self.spec.whole else re.search
        return {"matches": float(match(reference, answer) is not None)}

    def _read(self, data: Questions, tokenizer: Tokenizer, *, plain: bool) -> list[Question]:
        found = []
        for question, row, place in questions_of(
            data, f"{self.key}.data", tokenizer, ("pattern",), plain=plain
        ):
            try:
                re.compile(row["pattern"])
            except (re.error, TypeError) as error:
                raise DataError(f"{place}: `pattern` is no regular expression: {error}") from None
            found.append(replace(question, reference=row["pattern"]))
        return found
