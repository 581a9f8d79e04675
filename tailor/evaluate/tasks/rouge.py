"""The evaluation task `rouge`: ROUGE of the answer against the reference, computed by the package rouge-score."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tailor.errors import TailorError
from tailor.evaluate.tasks.answers import AnswerEvaluator, Scores
from tailor.evaluate.words import words
from tailor.spec.tasks.answers import Rouge

KINDS = Rouge.figures


class RougeEvaluator(AnswerEvaluator[Rouge]):
    def require(self) -> None:
        require_rouge()

    def score(self, answer: str, reference: str) -> Scores:
        scores = self._scorer.score(reference, answer)
        return {kind: float(scores[kind].fmeasure) for kind in KINDS}

    @cached_property
    def _scorer(self) -> Any:
        return require_rouge().RougeScorer(list(KINDS), tokenizer=RougeWords(self.spec.stemmer))


def require_rouge() -> Any:
    """rouge-score's scorer. TailorError when it is not installed."""
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise TailorError(
            "the task rouge needs the package rouge-score, which is not installed",
            hint="pip install 'tailor[evaluate]', or remove the task rouge",
        ) from None
    return rouge_scorer


class RougeWords:
    """A tokenizer for rouge-score. Its default one drops every non-ASCII letter; this one keeps them.

    ASCII text gets the default's words, CJK text is split into characters.
    """

    def __init__(self, stemmer: bool) -> None:
        self._stemmer = None
        if stemmer:
            from nltk.stem.porter import PorterStemmer

            self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        stemmer = self._stemmer
        if stemmer is None:
            return words(text)
        # rouge-score does not stem words of up to three letters.
        return [stemmer.stem(word) if len(word) > 3 else word for word in words(text)]
