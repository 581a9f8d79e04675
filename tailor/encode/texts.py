"""Texts to embed as token ids: a format around each, and which of the tokens are the text's own.

The format and the text are encoded apart, so that the text's tokens are those that it has alone: under splitting
patterns like Qwen's a text that begins with a newline or a sign would melt into the tag before it. Only the text
is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError


@dataclass(frozen=True)
class TextFormat:
    """What stands before a text. `instructed` has a place for the `{instruction}`; BOS is the tokenizer's."""

    instructed: str
    plain: str

    def before(self, instruction: str | None) -> str:
        """The part before a text that has this instruction, or none."""
        if not instruction:
            return self.plain
        head, _, tail = self.instructed.partition("{instruction}")
        return head + instruction + tail


GRITLM = TextFormat("<|user|>\n{instruction}\n<|embed|>\n", "<|embed|>\n")
"""The published format; its tags are plain text."""


@dataclass(frozen=True)
class TextTokens:
    """A text ready to embed. input_ids: int32[n]; the tokens from `start` on are the text's own; cut: tokens cut away."""

    input_ids: np.ndarray
    start: int
    cut: int = 0


class TextEncoder:
    """Encodes texts with their instructions. Picklable."""

    def __init__(self, tokenizer: Tokenizer, format: TextFormat = GRITLM) -> None:
        self.tokenizer = tokenizer
        self.format = format

    def __call__(
        self, texts: Sequence[tuple[str | None, str]], max_length: int | None = None
    ) -> list[TextTokens]:
        """(instruction, text) pairs as tokens, at most `max_length` of them each.

        A text without a token of its own has a `start` at the end of its tokens. DataError when what stands
        before a text leaves no room for it. UnicodeEncodeError or TypeError for a text with a lone surrogate.
        """
        heads: dict[str | None, list[int]] = {}
        for instruction, _ in texts:
            if instruction not in heads:
                head = self.tokenizer.encode(self.format.before(instruction))
                heads[instruction] = [*self.tokenizer.prefix, *head]
                if max_length is not None and len(heads[instruction]) >= max_length:
                    raise DataError(
                        f"the instruction {instruction!r} and its format have {len(heads[instruction])} tokens, "
                        f"which leaves no room for a text in {max_length}",
                        mend="raise the longest length, or shorten the instruction",
                    )
        encodings = self.tokenizer.encode_continuation([text for _, text in texts])
        found = []
        for (instruction, _), encoding in zip(texts, encodings, strict=True):
            head, own = heads[instruction], encoding.ids
            room = len(own) if max_length is None else max_length - len(head)
            ids = np.array(head + own[:room], np.int32)
            found.append(TextTokens(ids, len(head), max(0, len(own) - room)))
        return found
