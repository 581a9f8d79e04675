"""BM25: how well texts answer a query, by the words that they share (Robertson et al.).

k1 and b are Pyserini's for passages (0.9 and 0.4): a repeated word counts little, and so does a text's length.
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
"""A run of letters and digits; Chinese, Japanese and Korean by characters."""


def scores(query: str, texts: Sequence[str]) -> list[float]:
    """Of each text, 0 where it shares no word with the query. Rare words count more; the query's repeated words too."""
    counted = [Counter(words(text)) for text in texts]
    lengths = [sum(counts.values()) for counts in counted]
    mean = sum(lengths) / max(1, len(lengths)) or 1.0
    found = [0.0] * len(texts)
    for word, asked in Counter(words(query)).items():
        holding = sum(word in counts for counts in counted)
        rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for at, (counts, length) in enumerate(zip(counted, lengths, strict=True)):
            times = counts[word]
            found[at] += asked * rarity * times * (K1 + 1) / (times + K1 * (1 - B + B * length / mean))
    return found


def words(text: str) -> list[str]:
    """What is compared: words in lower case."""
    return _WORD.findall(text.lower())
