"""Shortens examples that exceed `max_length`: truncation, overlapping chunks, or retrieval of the relevant passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from tailor.data.split import Missing
from tailor.encode.masks import EncodedExample, Span
from tailor.spec.data import Chunk, Retrieve

Decode = Callable[[Sequence[int]], str]
Score = Callable[[str, Sequence[str]], Sequence[float]]
"""(question, texts) -> the relevance of each text."""


class Scorer(Protocol):
    """A `Score` by a model. Can be pickled. Scores depend on the texts only, not on the process or on earlier calls."""

    identity: str
    """A hash of everything that determines the scores."""
    memory: int
    """Maximum memory of a scoring process, in bytes."""
    truncated: int
    """Number of texts so far that were longer than the model's maximum length."""

    def __call__(self, question: str, texts: Sequence[str]) -> Sequence[float]: ...


def targets(spans: Sequence[Span]) -> int:
    """Number of supervised targets: the tokens in the spans without the token at position 0, which nothing predicts."""
    return sum(max(stop - max(start, 1), 0) for start, stop in spans)


def truncated(example: EncodedExample, max_length: int) -> EncodedExample:
    """The first `max_length` tokens of an example."""
    return piece(example, 0, max_length, 0)


def chunks(example: EncodedExample, max_length: int, settings: Chunk) -> list[EncodedExample]:
    """Chunks of at most `max_length` tokens: the example's `head`, the last `overlap` tokens of the chunk before, new tokens.

    The overlap of the last chunk is longer if the chunk would otherwise have fewer than `min_length` tokens. Head and
    overlap are context only: every token is a target once, in the first chunk that contains it.
    """
    head, length = example.head, len(example.input_ids)
    assert head + settings.overlap < max_length, "it would never end"
    assert settings.min_length <= max_length, "it would never end"
    pieces, done = [truncated(example, max_length)], max_length
    while done < length:
        start = max(done - settings.overlap, head)
        stop = start + max_length - head
        if stop >= length:  # the last chunk
            start = max(head, min(start, length - (settings.min_length - head)))
        pieces.append(piece(example, start, stop, done - start, head))
        done = stop
    return pieces


@dataclass(frozen=True)
class Selection:
    """The passages of a prompt, and those chosen for their relevance to its question. kept: their indexes, in order.

    The question and all that follows it start at token `tail`.
    """

    passages: Sequence[Span]
    kept: Sequence[int]
    tail: int

    def parts(self, length: int) -> list[Span]:
        """The ranges of an example of `length` tokens that remain."""
        return [*(self.passages[index] for index in self.kept), (self.tail, length)]


def select(
    ids: np.ndarray, answer: int, room: int, settings: Retrieve, decode: Decode, score: Score
) -> Selection | None:
    """The most relevant passages of the prompt `ids[:answer]` that fit with its question into `room` tokens.

    ids: int32 [T]. Passages are cut every `passage` tokens. The question is the last `question` tokens of the prompt. It
    is kept, and so is the first passage, as it contains the start of the template. Returns None when these leave no room
    for a second passage.
    """
    size, tail = settings.passage, max(answer - settings.question, 0)
    passages = [(start, min(start + size, tail)) for start in range(0, tail, size)]
    room -= answer - tail
    if len(passages) < 2 or passages[0][1] + size > room:
        return None
    texts = [decode(ids[start:stop].tolist()) for start, stop in passages]
    scores = score(decode(ids[tail:answer].tolist()), texts)
    chosen, used = {0}, passages[0][1]
    for index in sorted(range(1, len(passages)), key=lambda index: (-scores[index], index)):
        start, stop = passages[index]
        if used + stop - start <= room:
            chosen.add(index)
            used += stop - start
    return Selection(passages, sorted(chosen), tail)


def retrieved(
    example: EncodedExample, max_length: int, settings: Retrieve, decode: Decode, score: Score
) -> EncodedExample | None:
    """The example with only the most relevant passages of its prompt, in their order, at most `max_length` tokens.

    The prompt ends where the last supervised span starts. See `select`; None when it finds no room for two passages.
    """
    ids, answer = example.input_ids, example.spans[-1][0] if example.spans else 0
    found = select(ids, answer, max_length - (len(ids) - answer), settings, decode, score)
    return None if found is None else joined(example, found.parts(len(ids)))


def joined(example: EncodedExample, parts: Sequence[Span]) -> EncodedExample:
    """Concatenate parts of an example. A part's first token is not supervised where its predecessor was left out."""
    ids, spans, used, previous_stop = [], [], 0, 0
    for start, stop in parts:
        part = piece(example, start, stop, int(start != previous_stop))
        ids.append(part.input_ids)
        spans += [(begin + used, end + used) for begin, end in part.spans]
        used, previous_stop = used + stop - start, stop
    return replace(
        example, input_ids=np.concatenate(ids), spans=spans, missing=example.missing | Missing.MIDDLE
    )


def piece(example: EncodedExample, start: int, stop: int, context: int, head: int = 0) -> EncodedExample:
    """Tokens [start, stop) of an example after its first `head` ones. The head and `context` more are not supervised."""
    stop, moved = min(stop, len(example.input_ids)), head - start
    spans = [(max(begin, start + context) + moved, min(end, stop) + moved) for begin, end in example.spans]
    return example.part(start, stop, [(begin, end) for begin, end in spans if begin < end], head)
