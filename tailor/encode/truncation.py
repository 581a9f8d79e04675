"""Examples over `max_length`: cut off, cut into overlapping chunks, or with the passages that suit the question kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tailor.encode.masks import Encoded, Span
from tailor.spec.data import Chunk, Retrieve

Decode = Callable[[Sequence[int]], str]
Score = Callable[[str, Sequence[str]], Sequence[float]]
"""How well each text answers a question."""


class Scorer(Protocol):
    """A `Score` by a model. Picklable. Its scores follow from the texts alone, whatever the process and the calls before."""

    identity: str
    """Changes with all that changes its scores."""
    memory: int
    """Bytes of a process that scores, at most."""
    truncated: int
    """Texts that were longer than the model reads, so far."""

    def __call__(self, question: str, texts: Sequence[str]) -> Sequence[float]: ...


def targets(spans: Sequence[Span]) -> int:
    """Supervised targets: tokens in the spans, but never the token at position 0."""
    return sum(max(stop - max(start, 1), 0) for start, stop in spans)


def truncated(example: Encoded, most: int) -> Encoded:
    """The first `most` tokens."""
    return piece(example, 0, most, 0)


def chunks(example: Encoded, most: int, settings: Chunk) -> list[Encoded]:
    """Pieces of at most `most` tokens. Each begins with `overlap` tokens of the one before, or more where the last one
    would be short, and these are context only: every token is predicted once, in the first piece that holds it.
    """
    length, found, done = len(example.input_ids), [], 0
    while done < length:
        start = max(done - settings.overlap, 0)
        if start + most >= length:  # the last piece
            start = max(0, min(start, length - settings.min_length))
        found.append(piece(example, start, start + most, done - start))
        done = start + most
    return found


def retrieved(
    example: Encoded, most: int, settings: Retrieve, decode: Decode, score: Score
) -> Encoded | None:
    """The example with the passages of its prompt that suit the question best, in their order; at most `most` tokens.

    The question is the end of the prompt, before the last supervised span. It stays, and so does what comes after it,
    and the first passage, which holds what a template begins with. None where these leave no room for another.
    """
    ids, size = example.input_ids, settings.passage
    answer = example.spans[-1][0] if example.spans else 0
    tail = max(answer - settings.question, 0)
    passages = [(start, min(start + size, tail)) for start in range(0, tail, size)]
    room = most - (len(ids) - tail)
    if len(passages) < 2 or passages[0][1] + size > room:
        return None
    text = [decode(ids[start:stop].tolist()) for start, stop in passages]
    found = score(decode(ids[tail:answer].tolist()), text)
    chosen, used = {0}, passages[0][1]
    for at in sorted(range(1, len(passages)), key=lambda at: (-found[at], at)):
        start, stop = passages[at]
        if used + stop - start <= room:
            chosen.add(at)
            used += stop - start
    return joined(example, [*(passages[at] for at in sorted(chosen)), (tail, len(ids))])


def joined(example: Encoded, parts: Sequence[Span]) -> Encoded:
    """Parts of an example end to end. A part's first token has lost what it was predicted from, so it is not supervised."""
    ids, spans, used, before = [], [], 0, 0
    for start, stop in parts:
        own = piece(example, start, stop, int(start != before))
        ids.append(own.input_ids)
        spans += [(begin + used, end + used) for begin, end in own.spans]
        used, before = used + stop - start, stop
    return Encoded(np.concatenate(ids), spans)


def piece(example: Encoded, start: int, stop: int, context: int) -> Encoded:
    """Tokens [start, stop) of an example; its first `context` tokens are not supervised."""
    stop = min(stop, len(example.input_ids))
    spans = [(max(begin, start + context) - start, min(end, stop) - start) for begin, end in example.spans]
    return Encoded(example.input_ids[start:stop], [(begin, end) for begin, end in spans if begin < end])
