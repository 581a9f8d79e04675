"""Token boundaries between prompt and answer.

At inference the prompt is encoded on its own. Two effects could make training see other tokens:

1. A token of the whole text may cross the boundary. Generation never sees such a token, so the text is
   encoded in two pieces that meet at the boundary.
2. Before a boundary with several spaces or newlines, the usual pre-tokenizer pattern looks ahead
   (`\\s+(?!\\S)`), so the prompt on its own may have other tokens. The text is encoded in two pieces here too.

Everywhere else the tokens before the boundary equal those of the prompt on its own: BPE merges and
unigram segmentation do not depend on what follows a token boundary. A cut also applies when the turn is
history of later turns, as in a chat that keeps the tokens it generated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailor.encode.token_positions import Positions
from tailor.encode.tokenizer import Tokenizer


class Tokens:
    """Token ids of a text, encoded in pieces where needed so that no token crosses one of `boundaries` (character indices).

    ids: int32 [T].
    """

    def __init__(self, tokenizer: Tokenizer, text: str, whole: Positions, boundaries: Sequence[int]) -> None:
        # Pieces as (tokens, characters before them, tokens before them).
        self._pieces: list[tuple[Positions, int, int]] = [(whole, 0, 0)]
        cuts = [
            boundary
            for boundary in boundaries
            if whole.is_crossed(boundary) or _looked_ahead(tokenizer, text, whole, boundary)
        ]
        if cuts:
            self._cut(tokenizer, text, cuts)
        parts = [piece.ids for piece, _, _ in self._pieces]
        self.ids = parts[0] if len(parts) == 1 else np.concatenate(parts)

    def at(self, character: int) -> int:
        """Index of the first token that starts at or after a character."""
        for piece, before, count in reversed(self._pieces):
            if before <= character:
                return count + piece.first(character - before)
        raise AssertionError(character)

    def _cut(self, tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
        bounds = [0, *cuts, len(text)]
        added = _starts_of_added(tokenizer, self._pieces[0][0]) if tokenizer.adds_space else []
        sources: list[tuple[int, int, bool]] = [(0, cuts[0], False)]
        for start, stop in zip(cuts, bounds[2:], strict=True):
            # SentencePiece adds a space after a special token as in the whole text, so only the text up to it is a continuation.
            special = next((at for at in added if start < at < stop), stop)
            sources.append((start, special, True))
            if special < stop:
                sources.append((special, stop, False))
        self._pieces, count = [], 0
        for start, stop, continues in sources:
            piece = tokenizer.encode_with_positions([text[start:stop]], continues=continues)[0]
            self._pieces.append((piece, start, count))
            count += len(piece.ids)


def _looked_ahead(tokenizer: Tokenizer, text: str, whole: Positions, character: int) -> bool:
    """Whether the prompt on its own has other tokens before the boundary than the whole text."""
    if tokenizer.adds_space or not text[max(character - 2, 0) : character].isspace():
        return False
    after = first = whole.first(character)
    while first and whole.ids[first - 1] not in tokenizer.added:
        first -= 1
    begin = whole.end(first - 1) if first else 0
    return tokenizer.encode(text[begin:character]) != whole.ids[first:after].tolist()


def _starts_of_added(tokenizer: Tokenizer, whole: Positions) -> list[int]:
    """The characters at which added tokens start."""
    return [whole.start(at) for at, token in enumerate(whole.ids.tolist()) if token in tokenizer.added]
