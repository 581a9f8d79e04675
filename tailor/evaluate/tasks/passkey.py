"""The evaluation task `passkey`: a value hidden in repeated filler sentences (Mohtashami & Jaggi 2023, arXiv 2305.16300)."""

from __future__ import annotations

import random

from tailor.evaluate.tasks.grid import Ids, repeated
from tailor.evaluate.tasks.hidden_value import HiddenValueEvaluator
from tailor.spec.tasks.lengths import Passkey


class PasskeyEvaluator(HiddenValueEvaluator[Passkey]):
    def haystack(self) -> list[str]:
        return [self.spec.filler]

    def excerpt(self, hay: Ids, length: int, draw: random.Random) -> Ids:
        """The filler, repeated."""
        return repeated(hay, length)
