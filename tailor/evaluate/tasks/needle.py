"""A value hidden in texts of one's own."""

from __future__ import annotations

import random

from tailor.errors import DataError
from tailor.evaluate.own_rows import texts
from tailor.evaluate.tasks.base import FirstRows
from tailor.evaluate.tasks.hidden_value import HiddenValueEvaluator, Ids
from tailor.spec.tasks.lengths import Needle


class NeedleEvaluator(HiddenValueEvaluator[Needle]):
    def preflight(self, rows: FirstRows) -> None:
        list(texts(rows.of(self.spec.data), f"{self.key}.data"))

    def haystack(self) -> list[str]:
        return [text for _, text in texts(self.spec.data, f"{self.key}.data")]

    def stretch(self, hay: Ids, room: int, draw: random.Random) -> Ids:
        """A stretch of the texts."""
        if len(hay) < room:
            raise DataError(
                f"needle: the texts have {len(hay):,} tokens together, and {max(self.spec.lengths):,} are asked for",
                hint="give more texts in data, or shorter lengths",
            )
        start = draw.randrange(len(hay) - room + 1)
        return hay[start : start + room]
