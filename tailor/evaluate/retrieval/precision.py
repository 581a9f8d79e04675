"""Embeddings of one byte or one bit per dimension, by the conventions of sentence-transformers' `quantize_embeddings`.

E numbers per embedding, n embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tailor.errors import DataError

Quantized = Literal["int8", "ubinary"]
"""int8: the range of each dimension in 255 steps. ubinary: whether each number is above 0, eight dimensions in a byte."""
LEVELS = 255


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest number of each dimension, float32[E], in the embeddings that int8 is calibrated on."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> Ranges:
        """vectors: float32[n, E], n at least 1."""
        return cls(vectors.min(0), vectors.max(0))

    def joined(self, other: Ranges) -> Ranges:
        """The ranges of both sets of embeddings."""
        return Ranges(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    @property
    def steps(self) -> np.ndarray:
        steps = (self.high - self.low) / np.float32(LEVELS)
        return np.where(steps == 0, np.float32(1), steps)


def to_int8(vectors: np.ndarray, ranges: Ranges) -> np.ndarray:
    """int8[n, E]. Numbers outside of the ranges are clipped."""
    steps = np.clip(np.floor((vectors - ranges.low) / ranges.steps), 0, LEVELS)
    return (steps - 128).astype(np.int8)


def from_int8(stored: np.ndarray, ranges: Ranges) -> np.ndarray:
    """float32[n, E]: the middle of each step."""
    found: np.ndarray = ranges.low + (stored.astype(np.float32) + np.float32(128.5)) * ranges.steps
    return found


def to_ubinary(vectors: np.ndarray) -> np.ndarray:
    """uint8[n, ceil(E / 8)]."""
    return np.packbits(vectors > 0, axis=-1)


def from_ubinary(stored: np.ndarray, dimension: int) -> np.ndarray:
    """float32[n, dimension]: 1 for a set bit, else -1."""
    bits = np.unpackbits(stored, axis=-1, count=dimension)
    return bits.astype(np.float32) * 2 - 1


@dataclass(frozen=True)
class Coding:
    """How a file's embeddings are quantized. ranges: of int8; None before they are known."""

    name: Quantized
    ranges: Ranges | None = None

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """The numbers to store, from float32[n, E]. DataError for ranges of another dimension."""
        if self.name == "ubinary":
            return to_ubinary(vectors)
        assert self.ranges is not None
        self.require_dimension(vectors.shape[1])
        return to_int8(vectors, self.ranges)

    def require_dimension(self, dimension: int | None) -> None:
        """DataError for ranges of another dimension; None: it is not known yet."""
        if self.ranges is not None and dimension not in (None, len(self.ranges.low)):
            raise DataError(
                f"--ranges: its embeddings have {len(self.ranges.low)} dimensions, and these {dimension}",
                hint="give a file of the same model and --dimension",
            )

    def width(self, dimension: int) -> int:
        """Numbers stored per embedding."""
        return dimension if self.name == "int8" else -(-dimension // 8)

    def decode(self, stored: np.ndarray, dimension: int) -> np.ndarray:
        """float32[n, dimension] from the stored numbers."""
        if self.name == "ubinary":
            return from_ubinary(stored.astype(np.uint8), dimension)
        assert self.ranges is not None
        return from_int8(stored.astype(np.int8), self.ranges)

    def about(self, dimension: int) -> dict[str, Any]:
        """The keys that say in a file's metadata how to decode it."""
        found: dict[str, Any] = {"dtype": self.name, "dimension": dimension}
        if self.ranges is not None:
            found["ranges"] = [self.ranges.low.tolist(), self.ranges.high.tolist()]
        return found

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Coding | None:
        """The coding in a file's metadata; None for plain numbers. ValueError for ranges that cannot be."""
        if "dtype" not in about:
            return None
        if about["dtype"] != "int8":
            return cls(about["dtype"])
        with np.errstate(over="ignore"):
            found = [np.array(numbers, np.float32) for numbers in about.get("ranges", ())]
        if [len(numbers) for numbers in found] != [about.get("dimension")] * 2:
            raise ValueError("its ranges are not those of its dimensions")
        low, high = found
        if not (np.isfinite(low) & np.isfinite(high) & (low <= high)).all():
            raise ValueError("its ranges are not finite, or end before they begin")
        return cls("int8", Ranges(low, high))
