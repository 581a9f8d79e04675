"""Scores of answers against independent references: rouge-score itself, SQuAD's own F1, and cases by hand."""

from __future__ import annotations

import collections
import random
import re
import string
import sys

import pytest

from tailor.errors import TailorError
from tailor.evaluate.tasks.exact_match import ExactMatchEvaluator
from tailor.evaluate.tasks.f1 import f1
from tailor.evaluate.tasks.facts import facts_found
from tailor.evaluate.tasks.rouge import RougeEvaluator
from tailor.evaluate.words import squad_words, words
from tailor.onray.evaluate import require
from tailor.spec.load import with_overrides
from tailor.spec.tasks.answers import ExactMatch, Rouge

WORDS = [
    "the",
    "a",
    "an",
    "cat",
    "cats",
    "running",
    "ran",
    "quickly,",
    "house's",
    "3.14",
    "$5.00",
    "(blue)",
    "—",
    "end.",
    "Under_score",
    "e-mail",
    "I'm",
]


def texts(count: int, seed: int) -> list[str]:
    made = random.Random(seed)
    return [" ".join(made.choices(WORDS, k=made.randint(0, 12))).replace("—", "--") for _ in range(count)]


def squad_f1(prediction: str, truth: str) -> float:
    """Plain F1 of normalized tokens, as the data set's paper describes it."""

    def normalized(text: str) -> list[str]:
        text = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    left, right = normalized(prediction), normalized(truth)
    if not left or not right:
        return float(left == right)
    same = sum((collections.Counter(left) & collections.Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_matches_rouge_score_on_english(stemmer: bool) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    library = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stemmer)
    score = RougeEvaluator(Rouge(name="rouge", stemmer=stemmer), "tasks[0]").score
    partial = by_sentence = 0
    for answer, reference in zip(texts(200, 1), texts(200, 2), strict=True):
        answer, reference = (re.sub(" (the|cat|a|an) ", "\n", text) for text in (answer, reference))
        expected = {kind: value.fmeasure for kind, value in library.score(reference, answer).items()}
        assert score(answer, reference) == expected
        partial += 0 < expected["rougeL"] < 1
        by_sentence += expected["rougeLsum"] != expected["rougeL"]
    assert partial > 100, "the control: the texts have something in common, and not all"
    assert by_sentence > 20, "the control: sentences matter"


def test_rouge_of_chinese_is_by_characters() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    score = RougeEvaluator(Rouge(name="rouge"), "tasks[0]").score("我爱北京", "我爱上海")
    assert score == pytest.approx({"rouge1": 0.5, "rouge2": 1 / 3, "rougeL": 0.5, "rougeLsum": 0.5})
    plain = RougeScorer(["rouge1"]).score("我爱北京", "我爱北京")["rouge1"].fmeasure
    assert plain == 0, "the control: the library's own words lose the characters"
    assert words("Ärger, 42 und 我爱Kyiv Київ") == ["ärger", "42", "und", "我", "爱", "kyiv", "київ"]


def test_f1_matches_squad() -> None:
    pairs = list(zip(texts(300, 3), texts(300, 4), strict=True))
    assert [f1(answer, reference) for answer, reference in pairs] == pytest.approx(
        [squad_f1(answer, reference) for answer, reference in pairs]
    )
    assert sum(0 < f1(*pair) < 1 for pair in pairs) > 150, "the control"
    assert f1("我爱北京。", "我 爱 上海") == 0.5
    assert squad_words("The “dog”, a cat") == ["dog", "cat"]


def test_exact_match_is_exact_or_normalized() -> None:
    exact, normalized = (
        ExactMatchEvaluator(ExactMatch(name="exact_match", normalize=normalize), "tasks[0]").score
        for normalize in (False, True)
    )
    for answer, reference, plain, loose in (
        (" Paris\n", "Paris", 1.0, 1.0),
        ("the paris.", "Paris", 0.0, 1.0),
        ("Paris, France", "Paris", 0.0, 0.0),
    ):
        assert exact(answer, reference) == {"exact_match": plain}
        assert normalized(answer, reference) == {"exact_match": loose}


def test_facts_match_whole_words_in_any_form() -> None:
    answer = "It boils at 100 °C; the ANSWER is −3.5, in New  York. 水在100度沸腾。"
    facts = [
        ("100 °c",),
        ("-3.5",),
        ("new york",),
        ("boil",),
        ("3.5",),
        ("nowhere", "the answer"),
        ("沸腾",),
        ("10",),
    ]
    assert facts_found(answer, facts) == [True, True, True, False, False, True, True, False]


def test_rouge_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(TailorError) as caught:
        RougeEvaluator(Rouge(name="rouge"), "tasks[0]").require()
    assert str(caught.value) == (
        "the task rouge needs the package rouge-score, which is not installed; "
        "pip install 'tailor[evaluate]', or remove the task rouge"
    )


def test_lm_eval_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(TailorError) as caught:
        require(with_overrides({"tasks": [{"name": "lm_eval", "tasks": ["arc_easy"]}]}, "evaluation", ()))
    assert str(caught.value) == (
        "the task lm_eval needs the package lm-eval, which is not installed; "
        "pip install 'tailor[lm-eval]', or remove the task lm_eval"
    )
