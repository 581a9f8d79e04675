"""BM25 scores of texts for a query (Robertson and Zaragoza, 2009).

k1 = 0.9 and b = 0.4 are Pyserini's defaults for passages: repetitions of a word and the length of a text count little.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

K1, B = 0.9, 0.4
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff]+"
)
"""A sequence of letters and digits, or one Chinese, Japanese or Korean character."""


def scores(query: str, texts: Sequence[str]) -> list[float]:
    """The BM25 score of each text, 0 when it shares no word with the query."""
    counted = [Counter(words(text)) for text in texts]
    lengths = [sum(counts.values()) for counts in counted]
    mean = sum(lengths) / max(1, len(lengths)) or 1.0
    totals = [0.0] * len(texts)
    for word, in_query in Counter(words(query)).items():
        containing = sum(word in counts for counts in counted)
        idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        for index, (counts, length) in enumerate(zip(counted, lengths, strict=True)):
            frequency = counts[word]
            norm = K1 * (1 - B + B * length / mean)
            totals[index] += in_query * idf * frequency * (K1 + 1) / (frequency + norm)
    return totals


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())
