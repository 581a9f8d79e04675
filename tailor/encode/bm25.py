"""BM25 scores of texts for a query (Robertson and Zaragoza, 2009).

k1 = 0.9 and b = 0.4 are Pyserini's defaults for passages: repetitions of a word and the length of a text count little.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

K1, B = 0.9, 0.4
# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han; and Hangul, whose words have endings.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff"
# Marks within words, which Python's `\w` lacks: accents, Hebrew and Arabic vowels, and the blocks of the scripts of India.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(
    rf"[{_UNSPACED}]|(?:[^\W_\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff]|[{_MARKS}])+"
)
"""A sequence of letters, their marks and digits, or one character of a script without spaces between words."""


class Index:
    """An inverted index of texts. For each word it has the texts that contain it and its frequencies in them (8 bytes each)."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._postings: dict[str, tuple[array[int], array[int]]] = {}
        """word -> (indexes of the texts, frequencies)."""
        lengths = array("q")
        for number, text in enumerate(texts):
            counts = Counter(words(text))
            lengths.append(sum(counts.values()))
            for word, frequency in counts.items():
                numbers, frequencies = self._postings.setdefault(word, (array("i"), array("i")))
                numbers.append(number)
                frequencies.append(frequency)
        mean = sum(lengths) / max(1, len(lengths)) or 1.0
        self._norms = K1 * (1 - B + B * np.array(lengths, np.float64) / mean)  # [P]

    def scores(self, query: str) -> np.ndarray:
        """float64[P]: the BM25 score of each text, 0 when it shares no word with the query."""
        count = len(self._norms)
        totals = np.zeros(count)  # [P]
        for word, in_query in Counter(words(query)).items():
            if word not in self._postings:
                continue
            numbers, frequencies = (np.frombuffer(one, np.int32) for one in self._postings[word])
            idf = math.log(1 + (count - len(numbers) + 0.5) / (len(numbers) + 0.5))
            totals[numbers] += in_query * idf * frequencies * (K1 + 1) / (frequencies + self._norms[numbers])
        return totals


def scores(query: str, texts: Sequence[str]) -> list[float]:
    """The BM25 score of each text, 0 when it shares no word with the query."""
    found: list[float] = Index(texts).scores(query).tolist()
    return found


def words(text: str) -> list[str]:
    """The words of a text in lower case. A letter and its accent count as the letter with the accent."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _WORD.findall(text.lower())
