"""Words of a text and hashes of their n-grams. Case, punctuation and the form of Unicode make no difference."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import xxhash

# Scripts without spaces between words (Han, kana, Thai, Lao, Tibetan, Burmese, Khmer): each character is a word.
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|[-+*/<>=^%|&~]")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text, in lower case. Operators such as `+` and `<` are words: they change a formula.

    A text without words, such as an emoji, is one word.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold()) or [text.strip()] * bool(text.strip())


def hashes(text: str) -> np.ndarray:
    """uint64 [W]: a hash of each word."""
    digests = [xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in words(text)]
    return np.array(digests, np.uint64)


def ngrams(hashed: np.ndarray, size: int) -> np.ndarray:
    """uint64 [W - size + 1]: a hash of each run of `size` words. Empty for a shorter text."""
    count = len(hashed) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.full(count, size, np.uint64)
    for at in range(size):
        total = total * _FACTOR + hashed[at : at + count]
    return mixed(total)


def whole(hashed: np.ndarray) -> int:
    """A hash of all words of a text in their order."""
    return int(xxhash.xxh3_64_intdigest(hashed.tobytes()))


def content(text: str) -> int:
    """A hash of the words of a text: equal for texts that differ only in case, spaces and punctuation."""
    return int(xxhash.xxh3_64_intdigest("\0".join(words(text)).encode("utf-8", "surrogatepass")))


def mixed(values: np.ndarray) -> np.ndarray:
    """Spread uint64 values over all bits (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
