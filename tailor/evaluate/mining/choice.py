"""Which passages become negatives of a query: positive-aware mining (NV-Retriever, de Souza et al. 2024, arXiv 2407.15831).

A passage that is about as similar to the query as its positives is probably relevant too. So the scores of negatives stay below
a ceiling, which is that of the lowest-scoring positive minus a margin:

    relative margin m (TopK-PercPos)      ceiling = s - m · |s|      0.05: at most 95 % of the positive's score
    absolute margin a (TopK-MarginPos)    ceiling = s - a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Choice:
    """How negatives are chosen.

    count: negatives per row. ranks: half-open range, from 0, of the ranks to choose from. Passages that must not or, by their score,
    may not become negatives have no rank. sampling: the first ones of the range, or random ones.
    """

    count: int = 7
    ranks: tuple[int, int] = (0, 100)
    relative_margin: float | None = None
    absolute_margin: float | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    @property
    def has_ceiling(self) -> bool:
        return self.relative_margin is not None or self.absolute_margin is not None

    def ceilings(self, lowest: np.ndarray) -> np.ndarray:
        """float32[Q]: the score that the negatives of each query must stay below.

        lowest: float32[Q], the score of the lowest-scoring positive.
        """
        found = np.full(len(lowest), np.inf, np.float32)
        if self.relative_margin is not None:
            found = np.minimum(found, lowest - np.float32(self.relative_margin) * np.abs(lowest))
        if self.absolute_margin is not None:
            found = np.minimum(found, lowest - np.float32(self.absolute_margin))
        return found

    def chosen(self, ranked: np.ndarray, row: int) -> list[int]:
        """The negatives of a row, in the order of their ranks. ranked: passages, the most similar first."""
        start, stop = self.ranks
        passages = ranked[start:stop]
        if self.sampling == "random" and len(passages) > self.count:
            generator = np.random.default_rng([self.seed, row])
            passages = passages[np.sort(generator.choice(len(passages), self.count, replace=False))]
        found: list[int] = passages[: self.count].tolist()
        return found

    def of_scores(self, scores: np.ndarray, excluded: np.ndarray, lowest: float, row: int) -> list[int]:
        """The negatives of a row by BM25 scores, float64[P]. A passage that shares no word with the query has no rank.

        excluded: int64[k], passages that must not become negatives. lowest: score of the lowest-scoring positive.
        """
        allowed = scores > 0  # [P]
        allowed[excluded] = False
        if self.has_ceiling:
            allowed &= scores < self.ceilings(np.array([lowest], np.float32))[0]
        numbers = np.flatnonzero(allowed)
        order = np.argsort(-scores[numbers], kind="stable")[: self.ranks[1]]
        return self.chosen(numbers[order], row)

    def at_random(self, passages: int, excluded: np.ndarray, row: int) -> list[int]:
        """Random negatives of a row: each passage that may become one has the same probability."""
        generator = np.random.default_rng([self.seed, row])
        forbidden, found = set(excluded.tolist()), dict[int, None]()
        wanted = min(self.count, passages - len(forbidden))
        while len(found) < wanted:
            drawn = generator.integers(passages, size=2 * min(self.count, passages))
            found.update(dict.fromkeys(one for one in drawn.tolist() if one not in forbidden))
        return list(found)[:wanted]
