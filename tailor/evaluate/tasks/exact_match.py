"""The evaluation task `exact_match`: whether a generated answer equals the reference."""

from __future__ import annotations

from tailor.evaluate.tasks.answers import AnswerEvaluator, Scores
from tailor.evaluate.words import squad_words
from tailor.spec.tasks.answers import ExactMatch


class ExactMatchEvaluator(AnswerEvaluator[ExactMatch]):
    def score(self, answer: str, reference: str) -> Scores:
        same = _same_words if self.spec.normalize else _same_text
        return {"exact_match": float(same(answer, reference))}


def _same_text(answer: str, reference: str) -> bool:
    return answer.strip() == reference.strip()


def _same_words(answer: str, reference: str) -> bool:
    return squad_words(answer) == squad_words(reference)
