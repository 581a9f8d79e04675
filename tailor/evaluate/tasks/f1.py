"""The evaluation task `f1`: overlap of words between answer and reference."""

from __future__ import annotations

from collections import Counter

from tailor.evaluate.tasks.answers import AnswerEvaluator, Scores
from tailor.evaluate.words import squad_words
from tailor.spec.tasks.answers import F1


class F1Evaluator(AnswerEvaluator[F1]):
    def score(self, answer: str, reference: str) -> Scores:
        return {"f1": f1(answer, reference)}


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of words (SQuAD, Rajpurkar et al. 2016)."""
    given, expected = squad_words(answer), squad_words(reference)
    if not given or not expected:
        return float(given == expected)
    common = sum((Counter(given) & Counter(expected)).values())
    return 2 * common / (len(given) + len(expected))
