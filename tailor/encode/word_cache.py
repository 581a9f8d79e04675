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
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tokenizers

from tailor.encode.token_positions import ids_of

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN_2 = rf"{_WORDS}|\p{{N}}|{_REST}"
PATTERNS = (LLAMA_3, QWEN_2)
_PIECE = re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*(?:[^\S ]\s*)?|\s+")
_CUT = re.compile(r"\S ")
MAX_PIECES = 1 << 18
MAX_CHARACTERS = 1 << 24
"""The cache starts again beyond these limits, of the pieces in it: it needs about 60 MB at most."""


class WordCache:
    """Encodes texts whose tokens are those of their pieces. See `is_possible`. Threads may share it."""

    def __init__(self, encode: Callable[[list[str]], Sequence[tokenizers.Encoding]]) -> None:
        """encode: texts -> their encodings, without the tokens that the tokenizer adds around a text."""
        self._encode = encode
        self._lock = threading.Lock()
        self._clear()

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [T]: the token ids of each text."""
        pieces, counts = [], []
        for text in texts:
            own = _PIECE.findall(text)
            pieces += own
            counts.append(len(own))
        with self._lock:
            self._learn([piece for piece in dict.fromkeys(pieces) if piece not in self._numbers])
            numbers = np.fromiter(map(self._numbers.__getitem__, pieces), np.int64, len(pieces))
            starts = self._edges[numbers]  # [pieces]
            lengths = self._edges[numbers + 1] - starts  # [pieces]
            ends = np.cumsum(lengths)
            # The ids of all pieces, one after the other.
            at = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
            ids = self._ids[at]  # [tokens]
            if len(self._numbers) > MAX_PIECES or self._characters > MAX_CHARACTERS:
                self._clear()
        bounds = [0, *np.concatenate([[0], ends])[np.cumsum(counts, dtype=np.int64)].tolist()]
        return [ids[start:stop] for start, stop in pairwise(bounds)]

    def _learn(self, pieces: list[str]) -> None:
        if not pieces:
            return
        found = [ids_of(encoding) for encoding in self._encode(pieces)]
        self._numbers.update(
            zip(pieces, range(len(self._numbers), len(self._numbers) + len(pieces)), strict=True)
        )
        self._ids = np.concatenate([self._ids, *found])
        self._edges = np.append(self._edges, self._edges[-1] + np.cumsum([len(ids) for ids in found]))
        self._characters += sum(map(len, pieces))

    def _clear(self) -> None:
        self._numbers: dict[str, int] = {}
        """piece -> its number"""
        self._ids = np.zeros(0, np.int32)
        """int32 [tokens], of all pieces"""
        self._edges = np.zeros(1, np.int64)
        """int64 [pieces + 1], where the ids of each piece begin and end"""
        self._characters = 0


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
