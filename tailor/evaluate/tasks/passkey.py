"""A value hidden in a few sentences that are repeated."""

from __future__ import annotations

import random

from tailor.evaluate.tasks.hidden_value import HiddenValueEvaluator, Ids
from tailor.spec.tasks.lengths import Passkey


class PasskeyEvaluator(HiddenValueEvaluator[Passkey]):
    def haystack(self) -> list[str]:
        return [self.spec.filler]

    def stretch(self, hay: Ids, room: int, draw: random.Random) -> Ids:
        """The filler over and over."""
        return (hay * (room // max(1, len(hay)) + 1))[:room]
