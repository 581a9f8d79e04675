"""Answers of preference data as examples: a pair is a group of two, and is kept whole or dropped whole.

An example's prompt is what comes before its first supervised span, its completion is the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tailor.encode.masks import Encoded, Span
from tailor.encode.reasoning import DROPPED, differ_only_in_reasoning
from tailor.encode.records import Answer, Pair, Rated, RowError
from tailor.spec.methods.base import AnswerLimits

SAME = "same_answers"


def answers(records: Sequence[Pair | Rated]) -> list[Answer]:
    """All answers of the records, one after the other."""
    flat: list[Answer] = []
    for record in records:
        flat += [record.chosen, record.rejected] if isinstance(record, Pair) else [record.answer]
    return flat


def grouped(
    records: Sequence[Pair | Rated], results: Sequence[list[Encoded] | RowError]
) -> list[list[Encoded] | RowError]:
    """The encoded answers again by record, each with its place in the record's group."""
    left = iter(results)
    return [
        _pair(record, [next(left), next(left)])
        if isinstance(record, Pair)
        else _group([next(left)], (record.desirable,), ("",))
        for record in records
    ]


def _pair(record: Pair, results: Sequence[list[Encoded] | RowError]) -> list[Encoded] | RowError:
    dropped = all(isinstance(result, RowError) and result.reason == DROPPED for result in results)
    if dropped and differ_only_in_reasoning(record):
        return RowError(SAME, "the answers differ only in reasoning, which the chat template drops")
    return _group(results, (True, False), ("chosen: ", "rejected: "))


def _group(
    results: Sequence[list[Encoded] | RowError], is_positive: Sequence[bool], names: Sequence[str]
) -> list[Encoded] | RowError:
    group: list[Encoded] = []
    for position, (result, name) in enumerate(zip(results, names, strict=True)):
        if isinstance(result, RowError):
            return RowError(result.reason, name + result.detail)
        if len(result) != 1:
            detail = "the chat template rewrites earlier turns, so that the answer stands in no single text"
            return RowError("template", name + detail)
        if not result[0].spans:
            return RowError("nothing_supervised", name + "no token of it would be learned")
        group.append(replace(result[0], position=position, is_positive=is_positive[position]))
    if len(group) == 2 and _same_scored(*group):
        return RowError(SAME, "the tokens of both answers that are compared are the same")
    return group


def _same_scored(first: Encoded, second: Encoded) -> bool:
    """Whether the supervised tokens of two answers are the same."""
    one, other = (
        np.concatenate([example.input_ids[start:stop] for start, stop in example.spans])
        for example in (first, second)
    )
    return np.array_equal(one, other)


def too_long(group: Sequence[Encoded], limits: AnswerLimits, max_length: int) -> str:
    """Which limit the group exceeds, in words; empty when it fits."""
    prompt = max(example.spans[0][0] for example in group)
    completion = max(example.spans[-1][1] - example.spans[0][0] for example in group)
    longest = max(len(example.input_ids) for example in group)
    if limits.prompt is not None and prompt > limits.prompt:
        return f"a prompt of {prompt} tokens, method.max_prompt_length is {limits.prompt}"
    if limits.completion is not None and completion > limits.completion:
        return f"an answer of {completion} tokens, method.max_completion_length is {limits.completion}"
    return f"{longest} tokens, max_length is {max_length}" if longest > max_length else ""


def kept(group: Sequence[Encoded], limits: AnswerLimits, max_length: int) -> list[Span]:
    """Which tokens of each answer are kept: the end of the prompt and the start of the completion.

    The prompt keeps what the longest completion leaves of `max_length`, and at least half of it.
    """
    starts = [example.spans[0][0] for example in group]
    rests = [
        min(len(example.input_ids) - start, limits.completion or max_length)
        for example, start in zip(group, starts, strict=True)
    ]
    room = max(max_length // 2, max_length - max(rests))
    spans = []
    for start, rest in zip(starts, rests, strict=True):
        prompt = min(start, room, limits.prompt or room)
        spans.append((start - prompt, start + min(rest, max_length - prompt)))
    return spans


def cut(group: Sequence[Encoded], spans: Sequence[Span]) -> list[Encoded] | RowError:
    """The kept tokens of each answer, or why nothing is left to compare."""
    pieces = []
    for example, (begin, end) in zip(group, spans, strict=True):
        inside = [(max(start, begin) - begin, min(stop, end) - begin) for start, stop in example.spans]
        inside = [span for span in inside if span[0] < span[1]]
        pieces.append(replace(example, input_ids=example.input_ids[begin:end], spans=inside))
    if len(pieces) == 2 and all(piece.spans for piece in pieces) and _same_scored(*pieces):
        return RowError(SAME, "the answers differ only in what is cut")
    return pieces
