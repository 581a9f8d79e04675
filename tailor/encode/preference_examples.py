"""Examples of preference data: a pair makes a group of two examples, which are kept or dropped together.

The prompt of an example is everything before its first supervised span, its completion is the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailor.encode.masks import EncodedExample, Span
from tailor.encode.reasoning import DROPPED, differ_only_in_reasoning
from tailor.encode.records import Answer, Pair, Rated, RowError
from tailor.encode.truncation import piece
from tailor.spec.methods.base import AnswerLimits

SAME = "same_answers"


def answers(records: Sequence[Pair | Rated]) -> list[Answer]:
    """The answers of all records as a flat list: of a pair, chosen and rejected."""
    flat: list[Answer] = []
    for record in records:
        flat += [record.chosen, record.rejected] if isinstance(record, Pair) else [record.answer]
    return flat


def grouped(
    records: Sequence[Pair | Rated], results: Sequence[list[EncodedExample] | RowError]
) -> list[list[EncodedExample] | RowError]:
    """Group the encoded answers of `answers` by record again, and set their positions in the groups."""
    remaining = iter(results)
    return [
        _pair(record, [next(remaining), next(remaining)])
        if isinstance(record, Pair)
        else _group([next(remaining)], (record.desirable,), ("",))
        for record in records
    ]


def _pair(
    record: Pair, results: Sequence[list[EncodedExample] | RowError]
) -> list[EncodedExample] | RowError:
    dropped = all(isinstance(result, RowError) and result.reason == DROPPED for result in results)
    if dropped and differ_only_in_reasoning(record):
        return RowError(SAME, "the answers differ only in reasoning, which the chat template drops")
    return _group(results, (True, False), ("chosen: ", "rejected: "))


def _group(
    results: Sequence[list[EncodedExample] | RowError], is_positive: Sequence[bool], names: Sequence[str]
) -> list[EncodedExample] | RowError:
    group: list[EncodedExample] = []
    for position, (result, name) in enumerate(zip(results, names, strict=True)):
        if isinstance(result, RowError):
            return RowError(result.reason, name + result.detail)
        if len(result) != 1:
            detail = "the chat template rewrites earlier turns, so that prompt and answer are not one text"
            return RowError("template", name + detail)
        if not result[0].spans:
            return RowError("nothing_supervised", name + "the answer has no supervised token")
        group.append(replace(result[0], position=position, is_positive=is_positive[position]))
    if len(group) == 2 and _same_scored(*group):
        return RowError(SAME, "the tokens of both answers that are compared are the same")
    return group


def _same_scored(first: EncodedExample, second: EncodedExample) -> bool:
    """Whether the supervised tokens of two answers are the same."""
    one, other = (
        np.concatenate([example.input_ids[start:stop] for start, stop in example.spans])
        for example in (first, second)
    )
    return np.array_equal(one, other)


def too_long(group: Sequence[EncodedExample], limits: AnswerLimits, max_length: int) -> str:
    """Which limit the group exceeds, as a message; empty when it fits."""
    prompt = max(example.spans[0][0] for example in group)
    completion = max(example.spans[-1][1] - example.spans[0][0] for example in group)
    longest = max(len(example.input_ids) for example in group)
    if limits.prompt is not None and prompt > limits.prompt:
        return f"a prompt of {prompt} tokens; method.max_prompt_length is {limits.prompt}"
    if limits.completion is not None and completion > limits.completion:
        return f"an answer of {completion} tokens; method.max_completion_length is {limits.completion}"
    return f"{longest} tokens; data.max_length is {max_length}" if longest > max_length else ""


@dataclass(frozen=True)
class Kept:
    """What truncation keeps of an example: its first `head` tokens (BOS), and the tokens [start, stop)."""

    head: int
    start: int
    stop: int

    @property
    def ranges(self) -> tuple[Span, Span]:
        return (0, self.head), (self.start, self.stop)


def kept(
    group: Sequence[EncodedExample], heads: Sequence[int], limits: AnswerLimits, max_length: int
) -> list[Kept]:
    """What truncation keeps of each example: BOS, the end of the prompt, the start of the completion.

    The prompt gets what the longest completion leaves of `max_length`, but at least half of `max_length`. heads: number of
    BOS tokens of each example, which count as tokens of the prompt.
    """
    starts = [example.spans[0][0] for example in group]
    rests = [
        min(len(example.input_ids) - start, limits.completion or max_length)
        for example, start in zip(group, starts, strict=True)
    ]
    room = max(max_length // 2, max_length - max(rests))
    found = []
    for start, rest, head in zip(starts, rests, heads, strict=True):
        prompt = min(start, room, limits.prompt or room)
        head = head if head < prompt < start else 0
        found.append(Kept(head, start - prompt + head, start + min(rest, max_length - prompt)))
    return found


def cut(group: Sequence[EncodedExample], parts: Sequence[Kept]) -> list[EncodedExample] | RowError:
    """The kept tokens of each example, or a RowError when truncation makes both answers of a pair equal."""
    pieces = [
        piece(example, part.start, part.stop, 0, part.head)
        for example, part in zip(group, parts, strict=True)
    ]
    if len(pieces) == 2 and all(piece.spans for piece in pieces) and _same_scored(*pieces):
        return RowError(SAME, "the answers differ only in the tokens that truncation cuts")
    return pieces
