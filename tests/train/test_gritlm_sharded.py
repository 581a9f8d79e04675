"""Method gritlm on two workers, under every strategy: each setting of its loss and attention has the curve of one worker."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.strategies import STRATEGIES
from tests.train.test_gritlm import Made, curve, made

__all__ = ["made"]  # the fixture

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]

PREFIX = {"generative_attention": "prefix_lm", "train_on": "last_assistant"}
MARGINS = {"distillation": "margin_mse", "temperature": 1.0}
"""Losses of about 1, of which float32 keeps seven digits, as of the others."""
SETTINGS: dict[str, dict[str, Any]] = {
    "cccc": {"attention": "causal", "pooling": "weightedmean"},
    "bccc": {"attention": "bidirectional_instruction", "pooling": "lasttoken"},
    "cbcc": {"attention": "bidirectional_text"},
    "bbbb": PREFIX,
    "cccb, all weights": {"attention": "causal", "adapted": False, **PREFIX},
    "queries": {"embedding_gradients": "queries"},
    "passages, all weights": {"embedding_gradients": "passages", "adapted": False},
    "passages, chunk_checkpoint": {"embedding_gradients": "passages", "engine": "chunk_checkpoint"},
    "queries, alone": {"embedding_gradients": "queries", "mode": "embedding", "adapted": False},
    "kl": {"distillation": "kl", "teacher_temperature": 2.0},
    "margin_mse, all weights": {**MARGINS, "adapted": False, "contrastive_weight": 0.5},
    "margin_mse, chunk_checkpoint": {**MARGINS, "engine": "chunk_checkpoint"},
    "symmetric": {"symmetric": True, "mask_duplicates": False},
    "hard": {"negatives": "hard"},
    "margin, mixed": {"false_negative_margin": 0.1, "generative_normalization": "mixed"},
    "sequence, matryoshka": {"generative_normalization": "sequence", "matryoshka": [8]},
    "prefix, checkpointed": {**PREFIX, "train": {"activation_checkpointing": True}},
}


def curves(host: PlainHost, plans: dict[str, Any]) -> dict[str, Any]:
    """The curve of each plan, or the error that it ends with: one case must not hide the others."""
    found: dict[str, Any] = {}
    for case, plan in plans.items():
        try:
            found[case] = curve(host, plan)
        except Exception as error:
            found[case] = f"{type(error).__name__}: {error}"
            host.records.clear()
    return found


@pytest.fixture(scope="module")
def varied(made: Made) -> Made:
    """With prompts of different tokens: in one of equal tokens, both attentions are nearly the same."""
    head = (7, 90, 200)
    both = make_grit_store(made.folder / "varied", queries=13, examples=7, evaluation=5, head=head)
    return dataclasses.replace(made, both=both)


@pytest.fixture(scope="module")
def alone(varied: Made) -> dict[str, list[float]]:
    return {case: curve(PlainHost(), varied.plan(f"one/{case}", **keys)) for case, keys in SETTINGS.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_equal_one(varied: Made, alone: dict[str, list[float]], strategy: str) -> None:
    plans = {
        case: varied.plan(f"two/{strategy}/{case}", workers=2, strategy=STRATEGIES[strategy], **keys)
        for case, keys in SETTINGS.items()
    }
    found = run_distributed(curves, plans, world=2)[0]
    wrong = {case: found[case] for case in SETTINGS if found[case] != pytest.approx(alone[case], abs=1e-5)}
    assert not wrong


def test_the_settings_have_an_effect(alone: dict[str, list[float]], varied: Made) -> None:
    """The control: each setting has another curve than the defaults."""
    usual = {
        adapted: curve(PlainHost(), varied.plan(f"usual-{adapted}", adapted=adapted))
        for adapted in (True, False)
    }
    usual_alone = curve(PlainHost(), varied.plan("usual-alone", mode="embedding", adapted=False))
    for case, keys in SETTINGS.items():
        if keys.keys() == {"generative_attention", "train_on", "train"}:
            continue  # the same curve as without activation checkpointing
        expected = usual_alone if keys.get("mode") else usual[keys.get("adapted", True)]
        assert alone[case] != pytest.approx(expected, abs=1e-4), case
