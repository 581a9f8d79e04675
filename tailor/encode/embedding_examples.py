"""Texts to embed as token ids: a format around each, and which of the tokens are the text's own.

The format and the text are encoded apart, so that the text's tokens are those that it has alone: under splitting
patterns like Qwen's a text that begins with a newline or a sign would melt into the tag before it. Only the text
is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailor.encode.masks import Encoded
from tailor.encode.records import Relevance, RowError
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.spec.methods.base import TextLimits


@dataclass(frozen=True)
class TextFormat:
    """What stands before a text. `instructed` has a place for the `{instruction}`; BOS is the tokenizer's."""

    instructed: str
    plain: str

    def before(self, instruction: str | None) -> str:
        """The part before a text that has this instruction, or none.

        Spaces and colons around an instruction are left out: published rows end theirs with a colon.
        """
        instruction = (instruction or "").strip("\t\n :")
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
                        hint="raise the longest length, or shorten the instruction",
                    )
        encodings = self.tokenizer.encode_continuation([text for _, text in texts])
        found = []
        for (instruction, _), encoding in zip(texts, encodings, strict=True):
            head, own = heads[instruction], encoding.ids
            room = len(own) if max_length is None else max_length - len(head)
            ids = np.array(head + own[:room], np.int32)
            found.append(TextTokens(ids, len(head), max(0, len(own) - room)))
        return found


def relevances(
    encoder: TextEncoder, records: Sequence[Relevance], limits: TextLimits
) -> list[list[Encoded] | RowError]:
    """Per record its group at whole length: the query, the passages that answer it, and those that do not.

    An example's span is the text's own tokens. `is_positive` is False for passages that do not answer.
    """
    texts = [text for one in records for text in (one.query, *one.positives, *one.negatives)]
    left = iter(encoder(texts))
    groups: list[list[Encoded] | RowError] = []
    for record in records:
        positives = 1 + len(record.positives)
        group = []
        for position in range(positives + len(record.negatives)):
            text = next(left)
            span = (text.start, len(text.input_ids))
            group.append(Encoded(text.input_ids, [span], position, position < positives))
        groups.append(_checked(group, record, limits))
    return groups


def _checked(group: list[Encoded], record: Relevance, limits: TextLimits) -> list[Encoded] | RowError:
    for example in group:
        if example.spans[0][0] == example.spans[0][1]:
            return RowError("empty", f"{_name(example, record)} has no token")
    if limits.negatives and not record.negatives:
        return RowError(
            "no_negatives", "the row has no passage that does not answer; method.group_size: 1 needs none"
        )
    return group


def _name(example: Encoded, record: Relevance) -> str:
    at = example.position - 1 - len(record.positives)
    return (
        "the query"
        if not example.position
        else f"positive {example.position}"
        if at < 0
        else f"negative {at + 1}"
    )


def too_long(group: Sequence[Encoded], limits: TextLimits) -> str:
    """Which limit the group exceeds, in words; empty when it fits."""
    for example in group:
        most = limits.passage if example.position else limits.query
        if len(example.input_ids) > most:
            what = "passage" if example.position else "query"
            return f"a {what} of {len(example.input_ids)} tokens, and the longest may have {most}"
    return ""


def cut(group: Sequence[Encoded], limits: TextLimits) -> list[Encoded] | RowError:
    """The group with the ends of its texts cut away, or why no text is left."""
    pieces = []
    for example in group:
        most = limits.passage if example.position else limits.query
        start, stop = example.spans[0]
        if start >= most:
            return RowError(
                "too_long",
                f"an instruction with its format has {start} tokens, which leaves no room in {most}",
            )
        pieces.append(replace(example, input_ids=example.input_ids[:most], spans=[(start, min(stop, most))]))
    return pieces
