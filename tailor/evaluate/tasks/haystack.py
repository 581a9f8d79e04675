"""Tasks with several needles, in texts of the user's or in repeated sentences, scored as RULER does (arXiv 2404.06654)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from tailor.evaluate.own_rows import texts
from tailor.evaluate.tasks.base import FirstRows
from tailor.evaluate.tasks.grid import GridEvaluator, Ids, drawn, repeated
from tailor.spec.tasks.needles import HaystackGrid

S = TypeVar("S", bound=HaystackGrid)


class HaystackEvaluator(GridEvaluator[S]):
    """The haystack is `data`, or the filler. A subclass hides the values."""

    min_new_tokens: ClassVar[int] = 128
    """RULER's for its needles. Chat models repeat the question, with its keys, before they answer."""

    def preflight(self, rows: FirstRows) -> None:
        if self.spec.data is not None:
            list(texts(rows.of(self.spec.data), f"{self.key}.data"))

    def haystack(self) -> list[str]:
        if self.spec.data is None:
            return [self.spec.filler]
        return [text for _, text in texts(self.spec.data, f"{self.key}.data")]

    def excerpt(self, hay: Ids, length: int, draw: random.Random) -> Ids:
        """A random excerpt of the texts, or the filler, repeated."""
        return repeated(hay, length) if self.spec.data is None else drawn(self.spec, hay, length, draw)

    def found(self, answer: str, values: Sequence[str]) -> list[bool]:
        """RULER's `string_match_all`: whether the answer contains each value, in any case of letters."""
        answer = answer.lower()
        return [value.lower() in answer for value in values]
