"""The evaluation tasks `bleu` and `chrf`: corpus-level overlap of n-grams, counted by the package sacrebleu.

Both are functions of counts that are summed over rows, so the bootstrap over rows is exact: it sums the counts of the
sampled rows, as sacrebleu does for its own confidence intervals.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from tailor.errors import TailorError
from tailor.evaluate.figures import PerRow
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks.answers import AnswerEvaluator, Measured
from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.translation import Bleu, Chrf

S = TypeVar("S", bound=EvaluationTask)
BLEU_ORDER = 4
BETA = 2.0
"""Weight of recall over precision in chrF (chrF2, sacrebleu's default)."""


class CorpusEvaluator(AnswerEvaluator[S]):
    """A figure from sacrebleu's counts. The answers are one corpus; a row has no score of its own."""

    def require(self) -> None:
        require_sacrebleu(self.spec.name)

    @abstractmethod
    def counter(self) -> Any:
        """The metric of sacrebleu that counts."""

    @abstractmethod
    def figure(self, sums: np.ndarray) -> np.ndarray:
        """Summed counts, float64[..., K] -> the figure from 0 to 1, float64[...]."""

    def measure(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Measured:
        """All samples of a question are sentences of the corpus; they stay one row of the bootstrap."""
        references = [str(one.reference) for one in questions]
        counter, samples = self.counter(), list(zip(*answers, strict=True))
        counts = sum(
            np.array(counter._extract_corpus_statistics(list(texts), [references]), np.float64)
            for texts in samples
        )
        return Measured({self.spec.name: PerRow(counts, self.figure)}, [{} for _ in answers])


class BleuEvaluator(CorpusEvaluator[Bleu]):
    def counter(self) -> Any:
        # force: no warning about tokenized text, which the answers of a model are not.
        return require_sacrebleu("bleu").BLEU(
            tokenize=self.spec.tokenize, lowercase=self.spec.lowercase, force=True
        )

    def figure(self, sums: np.ndarray) -> np.ndarray:
        return bleu(sums)


class ChrfEvaluator(CorpusEvaluator[Chrf]):
    def counter(self) -> Any:
        return require_sacrebleu("chrf").CHRF(
            word_order=self.spec.word_order, beta=int(BETA), lowercase=self.spec.lowercase
        )

    def figure(self, sums: np.ndarray) -> np.ndarray:
        return chrf(sums)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU (Papineni et al. 2002) with sacrebleu's default smoothing (`exp`), from 0 to 1: float64[...].

    sums: float64[..., 2 + 2 * 4]: words of the answers and of the references, then for n from 1 to 4 the matching
    n-grams, then all n-grams of the answers.
    """
    given, expected = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    # Each order without a match halves its pretended match once more.
    halvings = np.cumsum((matches == 0) & (totals > 0), -1)
    counted = np.where(matches > 0, matches, 0.5**halvings)
    precisions = counted / np.maximum(totals, 1)
    penalty = np.exp(np.minimum(0.0, 1 - expected / np.maximum(given, 1)))
    geometric = np.exp(np.log(np.maximum(precisions, 1e-300)).mean(-1))
    found: np.ndarray = np.where((totals > 0).all(-1) & (matches > 0).any(-1), penalty * geometric, 0.0)
    return found


def chrf(sums: np.ndarray) -> np.ndarray:
    """chrF2 (Popovic 2015), from 0 to 1: float64[...]. Precision and recall are averaged over the orders of n-grams.

    sums: float64[..., 3 * orders]: for each order, n-grams of the answers, of the references, and matching ones.
    """
    counts = sums.reshape(*sums.shape[:-1], -1, 3)  # [..., orders, 3]
    given, expected, matches = counts[..., 0], counts[..., 1], counts[..., 2]
    used = (given > 0) & (expected > 0)
    orders = np.maximum(used.sum(-1), 1)
    precision, recall = (
        np.where(used, matches / np.maximum(total, 1), 0.0).sum(-1) / orders for total in (given, expected)
    )
    weighted = BETA**2 * precision + recall
    found: np.ndarray = (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)
    return found


def require_sacrebleu(task: str) -> Any:
    """sacrebleu's metrics. TailorError when it is not installed."""
    try:
        import sacrebleu.metrics
    except ImportError:
        raise TailorError(
            f"the task {task} needs the package sacrebleu, which is not installed",
            hint=f"pip install 'tailor[evaluate]', or remove the task {task}",
        ) from None
    return sacrebleu.metrics
