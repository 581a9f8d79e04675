"""The evaluation task `needle`: a value hidden in the user's texts."""

from __future__ import annotations

import random

from tailor.evaluate.own_rows import texts
from tailor.evaluate.tasks.base import FirstRows
from tailor.evaluate.tasks.grid import Ids, drawn
from tailor.evaluate.tasks.hidden_value import HiddenValueEvaluator
from tailor.spec.tasks.lengths import Needle


class NeedleEvaluator(HiddenValueEvaluator[Needle]):
    def preflight(self, rows: FirstRows) -> None:
        list(texts(rows.of(self.spec.data), f"{self.key}.data"))

    def haystack(self) -> list[str]:
        return [text for _, text in texts(self.spec.data, f"{self.key}.data")]

    def excerpt(self, hay: Ids, length: int, draw: random.Random) -> Ids:
        """A random excerpt of the texts."""
        return drawn(self.spec, hay, length, draw)
