"""The learning-rate schedules."""

from __future__ import annotations

import math

from tailor.spec.optim import Optim


def learning_rate(spec: Optim, step: int, steps: int, warmup: int, decay: int) -> float:
    """Learning rate of a step, counted from 0. warmup, decay: their steps.

    It is above 0 in the first step of the warm-up and in the last step: a rate of 0 would waste a step. After the warm-up
    it equals Hugging Face's schedule of the same name.
    """
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match spec.schedule:
        case "constant" | "constant_with_warmup":
            return spec.learning_rate
        case "linear":
            share = 1 - done
        case "cosine":
            share = _cosine(done)
        case "cosine_with_restarts":
            share = _cosine(spec.cycles * done % 1)
        case "wsd":
            share = 1.0 if step < steps - decay else _decay(spec, (step - (steps - decay)) / decay)
    return spec.learning_rate * share + spec.min_learning_rate * (1 - share)


def _decay(spec: Optim, done: float) -> float:
    """Share of the peak in the decay of `wsd`. done: its progress from 0 to 1."""
    match spec.decay:
        case "1-sqrt":
            return 1 - math.sqrt(done)
        case "linear":
            return 1 - done
        case "cosine":
            return _cosine(done)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
