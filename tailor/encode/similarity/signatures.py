"""MinHash signatures of records (Broder 1997), computed by datasketch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from tailor.encode.records import Rated, Record
from tailor.encode.similarity.texts import HashedTexts
from tailor.encode.similarity.words import mixed, ngrams
from tailor.errors import DataError

PERMUTATIONS = 128
"""Hash functions per signature. The standard error of a similarity of 0.8 is 0.035."""
SHINGLE = 3
"""Words per shingle."""
WIDTH = 2 * PERMUTATIONS
"""uint32 values per row: the signature of the prompt, then that of the answer."""
_ROWS = 4096
"""Shingles per call, which bounds the memory for a long text."""


def is_installed() -> bool:
    """Whether datasketch is installed."""
    return importlib.util.find_spec("datasketch") is not None


class Signer:
    """Computes the signatures of records. DataError when datasketch is not installed."""

    def __init__(self) -> None:
        if not is_installed():
            raise DataError(
                "near duplicates need the package datasketch", hint="pip install 'tailor[doctor]'"
            )
        from datasketch import MinHash

        self._minhash: Any = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=_itself)

    def __call__(self, record: Record, texts: HashedTexts) -> np.ndarray:
        """uint32 [WIDTH]. An answer is similar only to answers with the same label."""
        salt = np.uint64(isinstance(record, Rated) and not record.desirable)
        return np.concatenate([self._signature(texts.prompt, salt), self._signature(texts.answer, salt)])

    def _signature(self, texts: Sequence[np.ndarray], salt: np.uint64) -> np.ndarray:
        self._minhash.clear()
        # A text shorter than a shingle is a shingle of its own.
        runs = [ngrams(hashed, min(SHINGLE, len(hashed))) for hashed in texts if len(hashed)]
        shingles = np.concatenate(runs) if runs else np.zeros(0, np.uint64)
        shingles = np.unique((mixed(shingles ^ salt) >> np.uint64(32)).astype(np.uint32))
        for start in range(0, len(shingles), _ROWS):
            self._minhash.update_batch(shingles[start : start + _ROWS].tolist())
        values: np.ndarray = self._minhash.hashvalues
        return values.astype(np.uint32)


def _itself(value: int) -> int:
    return value
