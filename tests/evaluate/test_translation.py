"""BLEU and chrF against sacrebleu: the corpus score, and the scores of resampled corpora."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tailor.errors import TailorError
from tailor.evaluate.figures import PerRow
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks.base import make_evaluators
from tailor.spec.suite import Intervals, Suite

metrics = pytest.importorskip("sacrebleu.metrics")
WORDS = ["the", "cat", "sat", "on", "a", "mat", ",", "Ärger", "3.14", "dogs", "don't", "end."]


def corpus(rows: int, seed: int, kept: float) -> tuple[list[str], list[str]]:
    """Answers that keep a share of the words of their references."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(0 if at else 6, 14))) for at in range(rows)]
    answers = [
        " ".join(word if draw.random() < kept else draw.choice(WORDS) for word in one.split())
        for one in references
    ]
    return answers, references


def measured(task: dict[str, Any], answers: list[str], references: list[str]) -> PerRow:
    (evaluator,) = make_evaluators(Suite.model_validate({"tasks": [task]}).tasks)
    questions = [Question({}, [], "", "", one) for one in references]
    return evaluator.measure(questions, [[answer] for answer in answers]).figures[task["name"]]  # type: ignore[attr-defined]


CASES: list[tuple[dict[str, Any], Any]] = [
    ({"name": "bleu"}, lambda: metrics.BLEU()),
    (
        {"name": "bleu", "tokenize": "char", "lowercase": True},
        lambda: metrics.BLEU(tokenize="char", lowercase=True),
    ),
    ({"name": "chrf"}, lambda: metrics.CHRF()),
    ({"name": "chrf", "word_order": 2}, lambda: metrics.CHRF(word_order=2)),
]


@pytest.mark.parametrize(("task", "library"), CASES, ids=["bleu", "bleu-char", "chrf", "chrf++"])
def test_the_value_is_that_of_sacrebleu(task: dict[str, Any], library: Any) -> None:
    values = set()
    for seed, rows, kept in ((1, 40, 0.8), (2, 40, 0.3), (3, 1, 0.5), (4, 3, 0.0), (5, 2, 1.0)):
        answers, references = corpus(rows, seed, kept)
        expected = library().corpus_score(answers, [references]).score
        assert 100 * measured(task, answers, references).value == pytest.approx(expected, rel=1e-9)
        values.add(round(expected))
    assert len(values) >= 4, "the control: the corpora differ"
    for answers, references in (([""], ["a"]), (["a"], [""]), (["xyz"], ["the cat sat on"])):
        expected = library().corpus_score(answers, [references]).score
        assert 100 * measured(task, answers, references).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("task", "library"), CASES[::2], ids=["bleu", "chrf"])
def test_the_bootstrap_is_exact(task: dict[str, Any], library: Any) -> None:
    """Each bootstrap sample has the corpus score of its rows, which is not the mean of their own scores."""
    answers, references = corpus(12, 7, 0.7)
    settings = Intervals(samples=100, seed=3)
    figure = measured(task, answers, references)
    drawn = figure.drawn(settings)
    chosen = np.random.default_rng(3).integers(0, 12, (100, 12))
    for at in range(5):
        picked = [[texts[row] for row in chosen[at]] for texts in (answers, references)]
        expected = library().corpus_score(picked[0], [picked[1]]).score
        assert 100 * drawn[at] == pytest.approx(expected, rel=1e-9)
    alone = np.mean([figure.of([row]).value for row in range(12)])
    assert figure.value != pytest.approx(alone, rel=1e-3), "the control: not a mean over rows"


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    (evaluator,) = make_evaluators(Suite.model_validate({"tasks": [{"name": "chrf"}]}).tasks)
    with pytest.raises(TailorError) as caught:
        evaluator.require()
    assert str(caught.value) == (
        "the task chrf needs the package sacrebleu, which is not installed; "
        "pip install 'tailor[evaluate]', or remove the task chrf"
    )
