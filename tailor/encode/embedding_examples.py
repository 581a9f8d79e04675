"""Token ids of texts to embed: the instruction in its format, then the text, whose tokens are pooled.

The format and the text are encoded separately, so that the text has the same tokens as on its own. Otherwise
pre-tokenizer patterns such as Qwen's would merge a leading newline or punctuation mark with the tag before it.
Truncation cuts only the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailor.data.split import Missing
from tailor.encode.masks import EncodedExample, Span
from tailor.encode.records import Relevance, RowError
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.spec.methods.base import TextLimits


@dataclass(frozen=True)
class TextFormat:
    """The format before a text. instructed: contains the placeholder `{instruction}`; plain: without instruction.

    bos: whether a text begins with the tokenizer's BOS even if the tokenizer does not add it to plain text. joined: the format
    and the text are one string, within the special tokens that the tokenizer puts around plain text, and all of it is pooled.
    """

    instructed: str
    plain: str
    bos: bool = False
    joined: bool = False

    def prefix(self, tokenizer: Tokenizer) -> list[int]:
        """The ids before the format: what the tokenizer adds, or its BOS."""
        if self.bos and not tokenizer.prefix and tokenizer.bos_id is not None:
            return [tokenizer.bos_id]
        return tokenizer.prefix

    def prompt(self, instruction: str | None, tokenizer: Tokenizer) -> str:
        """The text before a text for callers whose tokenizer adds only what it always adds: with the BOS that it lacks."""
        is_missing = self.prefix(tokenizer) != tokenizer.prefix
        return (tokenizer.specials["bos_token"] if is_missing else "") + self.before(instruction)

    def before(self, instruction: str | None) -> str:
        """The format before a text with this instruction, or without one.

        Spaces and colons around the instruction are removed, because the instructions of published data end with a colon. In a
        joined format it stays as it is (`query: `); a space is added if it does not end with one.
        """
        if self.joined and instruction and instruction.strip():
            return instruction if instruction[-1].isspace() else f"{instruction} "
        instruction = (instruction or "").strip("\t\n :")
        if not instruction:
            return self.plain
        head, _, tail = self.instructed.partition("{instruction}")
        return head + instruction + tail


GRITLM = TextFormat("<|user|>\n{instruction}\n<|embed|>\n", "<|embed|>\n", bos=True)
"""The format of the GritLM paper. Its tags are plain text, not special tokens. Its BOS is that of the template gritlm."""


@dataclass(frozen=True)
class TextTokens:
    """A text ready to embed. input_ids: int32 [T]; spans: ranges of the tokens to pool, first that of the text itself;
    cut: number of tokens cut away."""

    input_ids: np.ndarray
    spans: list[Span]
    cut: int = 0

    @property
    def start(self) -> int:
        """Position of the text's first token."""
        return self.spans[0][0]

    @property
    def is_empty(self) -> bool:
        """Whether the text has no tokens of its own."""
        return self.spans[0][0] == self.spans[0][1]


class TextEncoder:
    """Encodes texts with their instructions. Can be pickled."""

    def __init__(self, tokenizer: Tokenizer, format: TextFormat = GRITLM) -> None:
        self.tokenizer = tokenizer
        self.format = format

    def __call__(
        self, texts: Sequence[tuple[str | None, str]], max_length: int | None = None
    ) -> list[TextTokens]:
        """Encode (instruction, text) pairs as at most `max_length` tokens each.

        DataError when the instruction and its format leave no room for a text. NotUnicodeError for a text with a lone
        surrogate.
        """
        encoded = self._joined(texts) if self.format.joined else self._apart(texts)
        if max_length is None:
            return encoded
        shortened = []
        for (instruction, _), text in zip(texts, encoded, strict=True):
            kept = _kept(text.input_ids, text.spans, max_length)
            if kept is None:
                around = len(text.input_ids) - (text.spans[0][1] - text.spans[0][0])
                raise DataError(
                    f"the instruction {instruction!r} with its format has {around} tokens, "
                    f"which leaves no room for a text in the maximum length of {max_length}",
                    hint="raise the maximum length, or shorten the instruction",
                )
            shortened.append(TextTokens(*kept, cut=max(0, len(text.input_ids) - max_length)))
        return shortened

    def _joined(self, texts: Sequence[tuple[str | None, str]]) -> list[TextTokens]:
        prefix, suffix = self.tokenizer.prefix, self.tokenizer.suffix
        heads = [self.format.before(instruction) for instruction, _ in texts]
        found = self.tokenizer.encode_with_positions(
            [head + text for head, (_, text) in zip(heads, texts, strict=True)]
        )
        encoded = []
        for head, (_, text), whole in zip(heads, texts, found, strict=True):
            ids = np.concatenate([np.array(prefix, np.int32), whole.ids, np.array(suffix, np.int32)])  # [T]
            stop = len(ids) - len(suffix)
            # The text's first token ends after the prompt. Blank texts have none.
            start = len(prefix) + (whole.first_after(len(head)) if text.strip() else len(whole.ids))
            encoded.append(TextTokens(ids, [(start, stop), (0, start), (stop, len(ids))]))
        return encoded

    def _apart(self, texts: Sequence[tuple[str | None, str]]) -> list[TextTokens]:
        heads: dict[str | None, list[int]] = {}
        prefix = self.format.prefix(self.tokenizer)
        for instruction, _ in texts:
            if instruction not in heads:
                head = self.tokenizer.encode(self.format.before(instruction))
                heads[instruction] = [*prefix, *head]
        bodies = self.tokenizer.encode_batch([text for _, text in texts], continues=True)
        encoded = []
        for (instruction, _), body in zip(texts, bodies, strict=True):
            head = heads[instruction]
            ids = np.concatenate([np.array(head, np.int32), body])  # [T]
            encoded.append(TextTokens(ids, [(len(head), len(ids))]))
        return encoded


def _kept(ids: np.ndarray, spans: Sequence[Span], max_length: int) -> tuple[np.ndarray, list[Span]] | None:
    """The tokens and spans of a text that is cut to at most `max_length` tokens; what follows the text stays. None if the
    text would have no token."""
    start, stop = spans[0]
    after = len(ids) - stop
    end = min(stop, max_length - after)
    if start >= max_length - after:
        return None
    moved = [
        (start, end),
        *((a, b) if b <= start else (a - stop + end, b - stop + end) for a, b in spans[1:]),
    ]
    return np.concatenate([ids[:end], ids[stop:]]) if end < stop else ids, moved


def relevances(
    encoder: TextEncoder, records: Sequence[Relevance], limits: TextLimits | None = None
) -> list[list[EncodedExample] | RowError]:
    """The group of each record at full length: the query, the relevant passages, the irrelevant ones.

    The spans of an example are the tokens to pool, first those of the text itself. `is_positive` is False for irrelevant
    passages. Scores are kept if `limits` asks for them; a record without them is a RowError then.
    """
    texts = [text for record in records for text in (record.query, *record.positives, *record.negatives)]
    remaining = iter(encoder(texts))
    groups: list[list[EncodedExample] | RowError] = []
    for record in records:
        positives = 1 + len(record.positives)
        group = []
        kept = record.scores if limits is not None and limits.scores else None
        scores = [math.nan, *(kept or [math.nan] * (positives - 1 + len(record.negatives)))]
        for position in range(positives + len(record.negatives)):
            text = next(remaining)
            group.append(
                EncodedExample(
                    text.input_ids, list(text.spans), position, position < positives, score=scores[position]
                )
            )
        groups.append(unscored(record, limits) or _checked(group, record))
    return groups


def unscored(record: Relevance, limits: TextLimits | None) -> RowError | None:
    """What the row lacks for distillation; None if nothing."""
    if limits is None or not limits.scores:
        return None
    if record.scores is None:
        return RowError("missing_scores", record.without_scores)
    if limits.negatives and not record.negatives:
        return RowError(
            "missing_scores", "the row has no negatives, and a teacher scores those of the row only"
        )
    return None


def _checked(group: list[EncodedExample], record: Relevance) -> list[EncodedExample] | RowError:
    for example in group:
        if example.spans[0][0] == example.spans[0][1]:
            return RowError("empty", f"{_name(example, record)} has no tokens")
    return group


def _name(example: EncodedExample, record: Relevance) -> str:
    negative = example.position - len(record.positives)
    return (
        "the query"
        if not example.position
        else f"positive {example.position}"
        if negative < 1
        else f"negative {negative}"
    )


def too_long(group: Sequence[EncodedExample], limits: TextLimits) -> str:
    """Which limit the group exceeds, as a message; empty when it fits."""
    for example in group:
        max_length = limits.passage if example.position else limits.query
        if len(example.input_ids) > max_length:
            what = "passage" if example.position else "query"
            return f"a {what} has {len(example.input_ids)} tokens; the maximum is {max_length}"
    return ""


def cut(group: Sequence[EncodedExample], limits: TextLimits) -> list[EncodedExample] | RowError:
    """The group with its texts truncated at their ends, or a RowError when no text would remain."""
    pieces = []
    for example in group:
        max_length = limits.passage if example.position else limits.query
        kept = _kept(example.input_ids, example.spans, max_length)
        if kept is None:
            start, stop = example.spans[0]
            around = len(example.input_ids) - (stop - start)
            before = "the query" if limits.pairs else "an instruction with its format"
            return RowError(
                "too_long",
                f"{before} has {around} tokens, which leaves no room in the maximum of {max_length}",
            )
        ids, spans = kept
        cut_away = Missing.END if len(ids) < len(example.input_ids) else Missing(0)
        pieces.append(replace(example, input_ids=ids, spans=spans, missing=example.missing | cut_away))
    return pieces
