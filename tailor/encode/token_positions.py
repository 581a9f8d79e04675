"""Where the tokens of a text begin and end, in characters: from the tokenizer's offsets, or from the bytes of its tokens.

A tokenizer needs a third more time if it tracks offsets. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) loses nothing: its
tokens, one after the other, are the bytes of the text. So where each begins follows from how many bytes each has.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tokenizers

_KEEPING = ("Split", "Digits", "Punctuation", "ByteLevel")
"""Pre-tokenizers that add nothing to a text. One that removes something leaves tokens of fewer bytes than the text."""


class Positions(Protocol):
    """The tokens of a text. ids: int32 [T]."""

    ids: np.ndarray

    def start(self, token: int) -> int:
        """The first character of a token."""

    def end(self, token: int) -> int:
        """The character after a token."""

    def first(self, character: int) -> int:
        """Index of the first token that starts at or after a character. The character itself may belong to no token."""

    def first_after(self, character: int) -> int:
        """Index of the first token that ends after a character."""

    def is_crossed(self, character: int) -> bool:
        """Whether a token contains characters on both sides of a boundary."""


class Offsets:
    """Positions from the offsets that the tokenizer tracks."""

    def __init__(self, encoding: tokenizers.Encoding) -> None:
        self._encoding = encoding
        self.ids = ids_of(encoding)

    def start(self, token: int) -> int:
        return self._range(token)[0]

    def end(self, token: int) -> int:
        return self._range(token)[1]

    def first(self, character: int) -> int:
        count = len(self.ids)
        end = self.end(count - 1) if count else 0
        while character < end:
            token = self._encoding.char_to_token(character)
            if token is not None:
                return token + (self.start(token) < character)
            character += 1
        return count

    def first_after(self, character: int) -> int:
        count = len(self.ids)
        return next((at for at, (_, end) in enumerate(self._encoding.offsets) if end > character), count)

    def is_crossed(self, character: int) -> bool:
        token = self._encoding.char_to_token(character)
        return token is not None and self.start(token) < character

    def _range(self, token: int) -> tuple[int, int]:
        # `encoding.offsets` would be slower: it builds a Python tuple per token.
        characters = self._encoding.token_to_chars(token)
        assert characters is not None
        return characters


class ByteCounts:
    """Positions from the number of bytes of each token. Use `ByteLengths.positions`."""

    def __init__(self, text: str, ids: np.ndarray, ends: np.ndarray) -> None:
        """ends: int [T], the bytes of the text up to the end of each token."""
        self._text, self.ids, self._ends = text, ids, ends

    def start(self, token: int) -> int:
        return self._character(int(self._ends[token - 1]) if token else 0)

    def end(self, token: int) -> int:
        end = int(self._ends[token])
        at = self._character(end)
        return at if self._byte(at) == end else at + 1  # a part of a character counts as the whole

    def first(self, character: int) -> int:
        # A token starts where the one before it ends, so this is the number of ends before the character, and the token there.
        byte = self._byte(character)
        return int(np.searchsorted(self._ends, byte)) + 1 if byte else 0

    def first_after(self, character: int) -> int:
        return int(np.searchsorted(self._ends, self._byte(character), side="right"))

    def is_crossed(self, character: int) -> bool:
        byte = self._byte(character)
        at = int(np.searchsorted(self._ends, byte))
        return 0 < byte < int(self._ends[-1]) and int(self._ends[at]) != byte

    def _byte(self, character: int) -> int:
        return character if self._text.isascii() else len(self._text[:character].encode())

    def _character(self, byte: int) -> int:
        """The character that a byte belongs to."""
        if self._text.isascii():
            return byte
        return len(self._text.encode()[:byte].decode(errors="ignore"))


class ByteLengths:
    """The number of bytes of each token of a byte-level tokenizer. Use `byte_lengths`."""

    def __init__(self, lengths: np.ndarray, *, composes: bool) -> None:
        """lengths: int64 [vocabulary]. composes: whether the tokenizer brings texts to Unicode's form NFC."""
        self._lengths, self._composes = lengths, composes

    def positions(self, text: str, ids: np.ndarray) -> ByteCounts | None:
        """ids: int32 [T], of the text. None where the tokens are not the text: it was brought to another form, or a token takes spaces with it."""
        if self._composes and not (text.isascii() or unicodedata.is_normalized("NFC", text)):
            return None
        ends = np.cumsum(self._lengths[ids])
        size = len(text) if text.isascii() else len(text.encode())
        return ByteCounts(text, ids, ends) if (int(ends[-1]) if len(ends) else 0) == size else None


def ids_of(encoding: tokenizers.Encoding) -> np.ndarray:
    """int32 [T]."""
    ids = encoding.ids
    return np.fromiter(ids, np.int32, len(ids))


def byte_lengths(content: Mapping[str, Any], backend: tokenizers.Tokenizer) -> ByteLengths | None:
    """From the content of tokenizer.json, and the tokenizer made of it. None unless each text is the bytes of its tokens, apart
    from what its tokens lack: then `positions` finds fewer bytes than the text has."""
    model, normalizer = content["model"], content.get("normalizer")
    if model.get("type") != "BPE" or normalizer not in (None, {"type": "NFC"}):
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    parts = content.get("pre_tokenizer") or {}
    parts = parts["pretokenizers"] if parts.get("type") == "Sequence" else [parts]
    names = [part.get("type") for part in parts]
    if names[-1:] != ["ByteLevel"] or names.count("ByteLevel") > 1 or not set(names) <= set(_KEEPING):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    # A byte without an entry becomes the unknown token, which may have more bytes, or nothing.
    has_unknown = model.get("unk_token") is not None and not alphabet <= vocabulary.keys()
    if parts[-1].get("add_prefix_space") or has_unknown:
        return None
    added_tokens = backend.get_added_tokens_decoder()
    # Entries of other characters than the alphabet's are never made of a text, so their lengths do not matter.
    lengths = np.zeros(max([*vocabulary.values(), *added_tokens]) + 1, np.int64)
    lengths[np.fromiter(vocabulary.values(), np.int64)] = np.fromiter(map(len, vocabulary), np.int64)
    for number, added in added_tokens.items():
        lengths[number] = len(added.content.encode())
    return ByteLengths(lengths, composes=normalizer is not None)
