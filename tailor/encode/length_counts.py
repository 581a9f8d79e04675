"""Lengths of examples as a number of examples for each length: the size depends on the longest one, not on their number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_PERCENTILES = (50, 90, 95, 99)
_BINS = 12


@dataclass(frozen=True)
class LengthCounts:
    """lengths: int64 [k] in tokens, ascending, each once; counts: int64 [k], their numbers of examples."""

    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray) -> LengthCounts:
        """lengths: int [examples]."""
        found, counts = np.unique(lengths, return_counts=True)
        return cls(found.astype(np.int64), counts.astype(np.int64))

    @classmethod
    def sum(cls, parts: Iterable[LengthCounts]) -> LengthCounts:
        """All examples of the parts."""
        parts = [NO_LENGTHS, *parts]
        lengths, index = np.unique(np.concatenate([part.lengths for part in parts]), return_inverse=True)
        counts = np.zeros(len(lengths), np.int64)
        np.add.at(counts, index, np.concatenate([part.counts for part in parts]))
        return cls(lengths, counts)

    def measures(self, supervised: int) -> dict[str, Any]:
        """Number of examples, tokens and supervised tokens, and percentiles of the example lengths in tokens."""
        examples, tokens = int(self.counts.sum()), int((self.lengths * self.counts).sum())
        counted: dict[str, Any] = {
            "examples": examples,
            "tokens": tokens,
            "supervised_tokens": int(supervised),
            "lengths": {},
        }
        if examples:
            # The lowest length that at least this share of the others does not exceed, as np.percentile with `higher`.
            places = np.ceil((examples - 1) * (np.array(_PERCENTILES) / 100)).astype(np.int64)
            marks = self.lengths[np.searchsorted(np.cumsum(self.counts), places, side="right")]
            counted["lengths"] = {
                "min": int(self.lengths[0]),
                "mean": round(tokens / examples, 1),
                **{f"p{percent}": int(mark) for percent, mark in zip(_PERCENTILES, marks, strict=True)},
                "max": int(self.lengths[-1]),
            }
        return counted

    def histogram(self) -> dict[str, list[int]]:
        """Bins of equal integer width: bin i counts the lengths in [edges[i], edges[i + 1])."""
        if not len(self.lengths):
            return {"counts": [], "edges": []}
        low, high = int(self.lengths[0]), int(self.lengths[-1])
        width = -(-(high - low + 1) // _BINS)
        edges = np.arange(low, high + 1 + width, width)
        counts, _ = np.histogram(self.lengths, bins=edges, weights=self.counts)
        return {"counts": counts.tolist(), "edges": edges.tolist()}


NO_LENGTHS = LengthCounts(np.zeros(0, np.int64), np.zeros(0, np.int64))
