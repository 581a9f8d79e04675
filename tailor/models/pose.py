"""PoSE (positional skip-wise training, arXiv 2309.10400): a short document whose position ids cover a longer target length.

A document is cut into chunks, and before each chunk but the first a random skip is added to the positions. They start at 0,
rise by 1 within a chunk, and stay below the target length. As published, each chunk before the last has a random length of up
to an equal share of the document, and the positions added to it so far are drawn between those of the chunk before and the
most that fits. The positions are a pure function of (seed, step, document), so that they do not depend on the micro-batch
size, the packing or the workers, and a resumed run draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAW = 1
"""Separates this draw from others that have the same seed, step and document (NEFTune)."""


@dataclass(frozen=True)
class SkippedPositions:
    """The position ids of training documents. length: positions to cover; chunks: of each document; seed: of the run."""

    length: int
    chunks: int
    seed: int

    def draw(self, step: int, number: int, tokens: int) -> np.ndarray:
        """Position ids of a document, int64[tokens]. They are plain if the document has no room for a skip.

        step: the training step, from 0. number: identifies the document within the step (`collator.numbers_of`).
        """
        positions = np.arange(tokens)  # int64[tokens]
        generator = np.random.default_rng(
            np.random.SeedSequence((self.seed, step, number), spawn_key=(DRAW,))
        )
        chunks, room = min(self.chunks, tokens), max(0, self.length - tokens)
        start = skipped = 0
        for left in range(chunks - 1, 0, -1):  # chunks after this one
            longest = min(-(-tokens // chunks), tokens - start - left)
            start += int(generator.integers(1, longest, endpoint=True))
            skip = int(generator.integers(0, room - skipped, endpoint=True))
            positions[start:] += skip
            skipped += skip
        return positions
