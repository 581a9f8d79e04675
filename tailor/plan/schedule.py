"""The steps of the parts of a learning-rate schedule."""

from __future__ import annotations

import math
from fractions import Fraction

from tailor.errors import DataError
from tailor.spec.optim import Optim

DECAY_RATIO = 0.1
"""Default of `optim.decay_ratio`."""


def warmup(optim: Optim, steps: int) -> int:
    """Steps of the warm-up of a run of `steps` steps. DataError if it does not end within them."""
    if optim.warmup_steps is not None:
        if optim.warmup_steps and optim.warmup_steps >= steps:
            raise DataError(
                f"optim.warmup_steps is {optim.warmup_steps}, but the whole run has only {steps} steps",
                hint="lower it, set optim.warmup_ratio, or train longer (train.epochs, train.steps)",
            )
        return optim.warmup_steps
    # A run of several steps also has one after the warm-up.
    return min(_share(optim.warmup_ratio or 0.0, steps), max(steps - 1, 1))


def decay(optim: Optim, steps: int, warmup: int) -> int:
    """Steps of the decay of the schedule `wsd`, 0 for another one. DataError if the schedule does not fit into the steps."""
    after = steps - warmup
    if optim.schedule == "cosine_with_restarts" and optim.cycles > after:
        raise DataError(
            f"optim.cycles is {optim.cycles}, but the run has only {after} steps after the warm-up",
            hint="lower it, or train longer (train.epochs, train.steps)",
        )
    if optim.schedule != "wsd":
        return 0
    key = "decay_ratio" if optim.decay_steps is None else "decay_steps"
    found = optim.decay_steps or _share(optim.decay_ratio or DECAY_RATIO, steps)
    if optim.decay_steps is None and optim.warmup_steps is None:
        return min(found, after)  # both shares are rounded up
    if found > after:
        raise DataError(
            f"optim.{key} asks for {found} steps of decay, but the run has only {after} steps after the warm-up",
            hint=f"lower optim.{key}, or train longer (train.epochs, train.steps)",
        )
    return found


def _share(ratio: float, steps: int) -> int:
    """A share of the steps, rounded up. Of the decimal number: 0.07 * 100 is above 7 in binary."""
    return math.ceil(Fraction(str(ratio)) * steps)
