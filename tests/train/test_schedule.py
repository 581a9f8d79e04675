"""The learning-rate schedules follow Hugging Face's of the same name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from tailor.spec.optim import Optim
from tailor.train.schedule import learning_rate

PEAK, STEPS, WARMUP, DECAY = 1e-2, 100, 10, 25


def spec(**values: Any) -> Optim:
    return Optim.model_validate({"learning_rate": PEAK, **values})


def rates(steps: int = STEPS, warmup: int = WARMUP, decay_steps: int = 0, **values: Any) -> list[float]:
    return [learning_rate(spec(**values), step, steps, warmup, decay_steps) for step in range(steps)]


def theirs(function: str, *arguments: int, **options: Any) -> list[float]:
    """The learning rates of a schedule of transformers."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = getattr(transformers, function)(optimizer, *arguments, **options)
    return [PEAK * scheduler.lr_lambdas[0](step) for step in range(STEPS)]


WSD = {"num_decay_steps": DECAY, "num_training_steps": STEPS}
CASES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant_with_warmup": (
        {"schedule": "constant_with_warmup"},
        theirs("get_constant_schedule_with_warmup", WARMUP),
    ),
    "constant": ({"schedule": "constant"}, theirs("get_constant_schedule_with_warmup", WARMUP)),
    "linear": ({"schedule": "linear"}, theirs("get_linear_schedule_with_warmup", WARMUP, STEPS)),
    "cosine": ({}, theirs("get_cosine_schedule_with_warmup", WARMUP, STEPS)),
    "cosine to a minimum": (
        {"min_learning_rate": 2e-3},
        theirs("get_cosine_with_min_lr_schedule_with_warmup", WARMUP, STEPS, min_lr=2e-3),
    ),
    "two cycles": (
        {"schedule": "cosine_with_restarts"},
        theirs("get_cosine_with_hard_restarts_schedule_with_warmup", WARMUP, STEPS, num_cycles=2),
    ),
    "five cycles": (
        {"schedule": "cosine_with_restarts", "cycles": 5},
        theirs("get_cosine_with_hard_restarts_schedule_with_warmup", WARMUP, STEPS, num_cycles=5),
    ),
    **{
        f"wsd, {decay}": (
            {"schedule": "wsd", "decay": decay, "min_learning_rate": 1e-3},
            theirs("get_wsd_schedule", WARMUP, **WSD, decay_type=decay, min_lr_ratio=0.1),
        )
        for decay in ("1-sqrt", "linear", "cosine")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_after_the_warm_up_it_is_that_of_hugging_face(case: str) -> None:
    values, expected = CASES[case]
    found = rates(decay_steps=DECAY, **values)
    assert found[WARMUP:] == pytest.approx(expected[WARMUP:], rel=1e-12)
    # The first step of the warm-up has a rate above 0, and the peak is that of the first step after it.
    assert found[:WARMUP] == pytest.approx([PEAK * (step + 1) / (WARMUP + 1) for step in range(WARMUP)])
    assert min(found) > 0
    assert found[WARMUP] == PEAK


def test_a_minimum_of_0_changes_no_bit() -> None:
    """The formulas of before there was a minimum."""
    assert rates(schedule="linear")[WARMUP:] == [PEAK * (1 - step / 90) for step in range(90)]
    cosine = [PEAK * 0.5 * (1 + math.cos(math.pi * (step / 90))) for step in range(90)]
    assert rates(schedule="cosine")[WARMUP:] == cosine


@pytest.mark.parametrize("schedule", ["cosine", "linear", "cosine_with_restarts", "wsd"])
def test_no_step_is_below_the_minimum(schedule: str) -> None:
    found = rates(decay_steps=DECAY, schedule=schedule, min_learning_rate=4e-3)[WARMUP:]
    assert 4e-3 < min(found) < 5e-3
    assert min(rates(decay_steps=DECAY, schedule=schedule)[WARMUP:]) < 4e-3, "control: without it, some are"


def test_wsd_may_decay_from_the_first_step_on() -> None:
    assert rates(warmup=0, decay_steps=STEPS, schedule="wsd", decay="linear") == pytest.approx(
        rates(warmup=0, schedule="linear")
    )


def test_a_restart_begins_at_the_peak() -> None:
    found = rates(steps=90, warmup=0, schedule="cosine_with_restarts", cycles=3)
    assert [found[step] for step in (0, 30, 60)] == pytest.approx([PEAK] * 3)
    assert found[29] < PEAK / 100


def test_wsd_without_a_step_for_the_decay_keeps_the_peak() -> None:
    assert rates(steps=3, warmup=1, decay_steps=0, schedule="wsd") == [PEAK / 2, PEAK, PEAK]
