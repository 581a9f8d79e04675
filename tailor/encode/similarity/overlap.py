"""Overlap of rows with reference rows, such as a benchmark's: the share of a reference text's word n-grams that a row has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailor.encode.readers import Reader
from tailor.encode.records import RowError
from tailor.encode.similarity.texts import HashedTexts
from tailor.encode.similarity.words import hashes, ngrams, whole
from tailor.encode.sources import find_files
from tailor.spec.data import Benchmark, Source

SIZE = 8
"""Words per n-gram, as in the decontamination of Llama 3 and Tulu 3."""
SHARE = 0.5
"""A row contains a reference text if it has at least this share of the text's n-grams."""
SHORT = 4
"""A text of at least this many words, but too short for n-grams, must equal a text of the row."""
_COMMON_SHARE = 0.01
_COMMON = 2
_DEPTH = 32


@dataclass(frozen=True)
class Match:
    """The reference text that a row contains. name: `file:row`; share: of its n-grams, from 0 to 1."""

    name: str
    share: float


class Reference:
    """The texts of reference rows, as hashes: 12 bytes per word. Can be pickled.

    N-grams in more than 1 % of the rows of a source (and in more than 2) are instructions that the rows share. They
    are left out. A text that loses more than half of its n-grams is not compared.
    """

    def __init__(self, sources: Iterable[Iterable[tuple[str, Any]]], *, short: bool) -> None:
        """sources: for each source its rows as (`file:row`, row). short: whether to compare texts of 4 to 7 words too."""
        self.names: list[str] = []
        """Name of the row of each text."""
        self._totals: list[int] = []
        """n-grams of each text. A text that must equal one of the row's has 1."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        wholes: list[tuple[np.ndarray, np.ndarray]] = []
        for rows in sources:
            long, exact = self._of_source(rows, short)
            parts += long
            wholes += exact
        self._hashes, self._owners = _sorted(parts)
        self._whole_hashes, self._whole_owners = _sorted(wholes)

    def __len__(self) -> int:
        """Number of texts that are compared."""
        return len(np.unique(np.concatenate([self._owners, self._whole_owners])))

    def match(self, texts: HashedTexts) -> Match | None:
        """The reference text that the texts of a row contain to the largest share. None below `SHARE`."""
        hashed = [*texts.prompt, *texts.answer]
        own = [ngrams(one, SIZE) for one in hashed]
        found = _owners(self._hashes, self._owners, np.unique(np.concatenate(own))) if own else []
        best: Match | None = None
        if len(found):
            owners, counts = np.unique(found, return_counts=True)
            shares = counts / np.array([self._totals[owner] for owner in owners])
            at = int(np.argmax(shares))
            if shares[at] >= SHARE:
                best = Match(self.names[owners[at]], float(shares[at]))
        if best is None and len(self._whole_hashes):
            exact = [whole(one) for one in hashed if SHORT <= len(one) < SIZE]
            equal = _owners(self._whole_hashes, self._whole_owners, np.array(exact, np.uint64))
            if len(equal):
                best = Match(self.names[int(np.min(equal))], 1.0)
        return best

    def _of_source(
        self, rows: Iterable[tuple[str, Any]], short: bool
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]:
        """(hashes, owners) of the n-grams, and of whole short texts, without those that are common in the source."""
        texts: list[tuple[str, np.ndarray, bool]] = []
        of_rows: list[np.ndarray] = []
        count = 0
        for name, row in rows:
            count += 1
            mine = []
            for text in _strings(row, 0):
                hashed = hashes(text)
                is_short = len(hashed) < SIZE
                if is_short and not (short and len(hashed) >= SHORT):
                    continue
                mine.append(
                    np.array([whole(hashed)], np.uint64) if is_short else np.unique(ngrams(hashed, SIZE))
                )
                texts.append((name, mine[-1], is_short))
            of_rows += [np.unique(np.concatenate(mine))] if mine else []
        if not texts:
            return [], []
        values, counts = np.unique(np.concatenate(of_rows), return_counts=True)
        common = values[counts > max(_COMMON, _COMMON_SHARE * count)]
        long, exact = [], []
        for name, own, is_short in texts:
            rare = own[~np.isin(own, common)] if len(common) else own
            if not len(rare) or 2 * len(rare) < len(own):
                continue
            owner = np.full(len(rare), len(self.names), np.int32)
            (exact if is_short else long).append((rare, owner))
            self.names.append(name)
            self._totals.append(len(rare))
        return long, exact


def benchmark_reference(benchmarks: Sequence[Benchmark], key: str) -> Reference:
    """The texts of benchmarks. key: the recipe key, for messages. DataError for a benchmark that cannot be read."""
    return Reference((rows_of(one, f"{key}[{at}]") for at, one in enumerate(benchmarks)), short=True)


def rows_of(source: Benchmark | Source, key: str) -> Iterator[tuple[str, Any]]:
    """The rows of a source as (`file:row`, row). Rows that cannot be read are left out."""
    remaining = source.limit
    for part in find_files(source, key):
        for number, row in Reader(part):
            if remaining == 0:
                return
            remaining = None if remaining is None else remaining - 1
            if not isinstance(row, RowError):
                yield f"{part.label}:{number}", row


def _strings(value: Any, depth: int) -> Iterator[str]:
    """All texts in a row, at every depth."""
    if isinstance(value, str):
        yield value
    elif depth < _DEPTH and isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner, depth + 1)
    elif depth < _DEPTH and isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner, depth + 1)


def _sorted(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes in order, and the owner of each."""
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int32)
    values, owners = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    order = np.lexsort((owners, values))
    return values[order], owners[order]


def _owners(values: np.ndarray, owners: np.ndarray, searched: np.ndarray) -> np.ndarray:
    """The owners of all sorted `values` that are among the searched ones, once per value."""
    left, right = np.searchsorted(values, searched), np.searchsorted(values, searched, "right")
    hit = np.flatnonzero(right > left)
    runs = [owners[left[at] : right[at]] for at in hit]
    return np.concatenate(runs) if runs else np.zeros(0, np.int32)
