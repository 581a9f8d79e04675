"""The conditions of `fail_if`: a comparison with a number, or with the same metric of a compared model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WITH_NUMBER = re.compile(rf"\s*(<=|>=|<|>)\s*([-+]?{_NUMBER})\s*")
_WITH_MODEL = re.compile(rf"\s*(<=|>=|<|>)\s*(\S|\S.*?\S)(?:\s+([-+])\s*({_NUMBER}))?\s*")
FORMS = 'write a comparison and a number, such as "< 0.3", or a compared model, such as "< base - 0.02"'


@dataclass(frozen=True)
class Bound:
    """A condition: the metric is `sign` than the number, or than the metric of `model` plus the number."""

    sign: str
    number: float
    model: str | None = None
    """A model as `compare` names it."""
    text: str = ""
    """The limit as the user wrote it."""

    def holds(self, value: float, limit: float) -> bool:
        """Whether the value fulfills the condition."""
        comparisons = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}
        return comparisons[self.sign]


def parse(text: str) -> Bound | None:
    """The condition that a text describes. None if it describes none."""
    if match := _WITH_NUMBER.fullmatch(text):
        return Bound(match[1], float(match[2]), text=match[2])
    if match := _WITH_MODEL.fullmatch(text):
        number = float(f"{match[3]}{match[4]}") if match[3] else 0.0
        margin = f" {match[3]} {match[4]}" if match[3] else ""
        return Bound(match[1], number, match[2], f"{match[2]}{margin}")
    return None


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The condition with another name of its model. names: old -> new."""
    bound = parse(text)
    model = bound.model if bound is not None else None
    if bound is None or model is None or model not in names:
        return text
    return f"{bound.sign} {names[model]}{bound.text.removeprefix(model)}"
