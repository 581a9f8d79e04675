"""Token ids of words that an earlier text had: byte-level BPE encodes each word alone, and texts repeat their words.

A text is cut before each space that follows a character that is no whitespace. Its tokens are those of its pieces, because

* no pattern that splits texts into words (`PATTERNS`, and GPT-2's of the class ByteLevel) matches a space after such a
  character, so a word ends before the cut and another one begins there;
* none of them looks behind, and `(?!\\S)` only looks past whitespace, so the words on one side do not depend on the other;
* BPE merges bytes of one word only;
* NFC, the only normalizer here, composes nothing with a space before it;
* added tokens, which are found before words are, contain no such space and take no spaces from beside them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import tokenizers

from tailor.encode.token_positions import ids_of

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN_2 = rf"{_WORDS}|\p{{N}}|{_REST}"
PATTERNS = (LLAMA_3, QWEN_2)
_PIECE = re.compile(r" *[^ ]+(?:(?<=\s) +[^ ]*)*| +")
_CUT = re.compile(r"\S ")
MAX_PIECES = 1 << 18
MAX_CHARACTERS = 1 << 22
"""The cache starts again beyond these limits, of the pieces in it: it needs about 60 MB at most."""
FIRST_PIECES = 1 << 14
FOUND_PER_NEW = 4
"""A new piece costs about what 2 or 3 found ones save. So this many pay for a new one, after the first ones: texts that do not
repeat their words are encoded whole, and take little more time than without the cache."""


class WordCache:
    """Encodes texts whose tokens are those of their pieces. See `is_possible`.

    Threads may share it and processes may fork: each entry is right on its own, and a full dictionary is left to those who
    read it.
    """

    def __init__(self, encode: Callable[[list[str]], Sequence[tokenizers.Encoding]]) -> None:
        """encode: texts -> their encodings, without the tokens that the tokenizer adds around a text."""
        self._encode = encode
        self._known: dict[str, bytes] = {}
        """piece -> its token ids, as int32"""
        self._characters = 0
        """of the known pieces"""
        self._credit: float = FOUND_PER_NEW * FIRST_PIECES
        """found pieces that have paid for no new one"""

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [T]: the token ids of each text."""
        known = self._known
        pieces = [_PIECE.findall(text) for text in texts]
        new = [piece for piece in dict.fromkeys(chain.from_iterable(pieces)) if piece not in known]
        count = sum(map(len, pieces))
        rest = self._credit + (count - len(new)) - FOUND_PER_NEW * len(new)
        if rest < 0:
            self._credit += count / 8  # later texts may repeat words
            return list(map(ids_of, self._encode(list(texts))))
        self._credit = rest
        known.update(zip(new, [array("i", one.ids).tobytes() for one in self._encode(new)], strict=True))
        self._characters += sum(map(len, new))
        if len(known) > MAX_PIECES or self._characters > MAX_CHARACTERS:
            self._known, self._characters = {}, 0
        ids_of_piece = known.__getitem__
        return [np.frombuffer(bytearray().join(map(ids_of_piece, own)), np.int32) for own in pieces]


def is_possible(content: Mapping[str, Any], added: Sequence[tokenizers.AddedToken]) -> bool:
    """Whether a text's tokens are those of its pieces. content: of tokenizer.json, of a tokenizer with `byte_lengths`. added:
    its added tokens."""
    parts = content["pre_tokenizer"]
    parts = parts["pretokenizers"] if parts["type"] == "Sequence" else [parts]
    splits = [part for part in parts if part["type"] == "Split"]
    return (
        not content["model"].get("dropout")
        and all(part["pattern"].get("Regex") in PATTERNS for part in splits)
        and all(part["behavior"] == "Isolated" and not part["invert"] for part in splits)
        and bool(splits or parts[-1].get("use_regex", True))
        and not any(one.lstrip or one.rstrip or one.single_word or _CUT.search(one.content) for one in added)
    )
