"""One value hidden in a prompt: what is hidden, and when an answer has found it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

from tailor.evaluate.tasks.grid import GridEvaluator, Hiding, Needle, number
from tailor.spec.tasks.lengths import SingleNeedle

S = TypeVar("S", bound=SingleNeedle)
_NUMBER = re.compile(r"\d+")


class HiddenValueEvaluator(GridEvaluator[S]):
    """Hides one value. A subclass provides the haystack."""

    def hide(self, depth: int, draw: random.Random) -> Hiding:
        value, at = number(self.spec.digits, draw), self.depths[depth]
        text = self.spec.needle.replace("{value}", value)
        return Hiding([Needle(text, at, value, at)], self.spec.question)

    def found(self, answer: str, values: Sequence[str]) -> list[bool]:
        return [is_found(answer, value) for value in values]


def is_found(answer: str, value: str) -> bool:
    """Whether the first number of an answer is the value."""
    first = _NUMBER.search(answer)
    return first is not None and first[0] == value
