"""An answer against its reference, each score from 0 to 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tailor.errors import TailorError
from tailor.evaluate.words import contains, fact_words, squad_words, words
from tailor.spec.base import Section
from tailor.spec.suite import F1, ExactMatch, Rouge

Score = Callable[[str, str], dict[str, float]]
"""(answer, reference) -> figure -> value."""

Fact = tuple[str, ...]
"""Ways to say a fact, one of which is enough."""


def scorer(task: Section) -> Score:
    """The scores of a task on answers with references. TailorError when its package is not installed."""
    if isinstance(task, ExactMatch):
        alike = _same_words if task.normalize else _same_text
        return lambda answer, reference: {"exact_match": float(alike(answer, reference))}
    if isinstance(task, F1):
        return lambda answer, reference: {"f1": f1(answer, reference)}
    assert isinstance(task, Rouge)
    return _rouge(task)


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of words (SQuAD, Rajpurkar et al. 2016)."""
    given, wanted = squad_words(answer), squad_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def facts_found(answer: str, facts: Sequence[Fact]) -> list[bool]:
    """Per fact, whether the answer states it in one of its ways, whatever case, punctuation and spaces are."""
    given = fact_words(answer)
    return [any(contains(given, fact_words(way)) for way in fact) for fact in facts]


def _same_text(answer: str, reference: str) -> bool:
    return answer.strip() == reference.strip()


def _same_words(answer: str, reference: str) -> bool:
    return squad_words(answer) == squad_words(reference)


def require_rouge() -> Any:
    """rouge-score's scorer. TailorError when it is not installed."""
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise TailorError(
            "the task rouge needs the package rouge-score, which is not installed",
            hint="pip install 'tailor[evaluate]', or leave rouge out of the tasks",
        ) from None
    return rouge_scorer


class RougeWords:
    """What rouge-score splits texts with: its own words on plain English, CJK by characters, no letter lost elsewhere."""

    def __init__(self, stemmer: bool) -> None:
        self._stemmer = None
        if stemmer:
            from nltk.stem.porter import PorterStemmer

            self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        stemmer = self._stemmer
        if stemmer is None:
            return words(text)
        # Short words stay, as rouge-score has it.
        return [stemmer.stem(word) if len(word) > 3 else word for word in words(text)]


def _rouge(task: Rouge) -> Score:
    kinds = ["rouge1", "rouge2", "rougeL"]
    rouge = require_rouge().RougeScorer(kinds, tokenizer=RougeWords(task.stemmer))

    def score(answer: str, reference: str) -> dict[str, float]:
        scores = rouge.score(reference, answer)
        return {kind: float(scores[kind].fmeasure) for kind in kinds}

    return score
