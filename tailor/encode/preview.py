"""The data preview: the first rows as tokens, with what is supervised, what is cut, and what is left out and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tailor.encode.examples import Encoder
from tailor.encode.formats import get_format
from tailor.encode.guard import guarded
from tailor.encode.inputs import Inputs
from tailor.encode.masks import EncodedExample, Span
from tailor.encode.prepare import make_encoder
from tailor.encode.readers import Reader
from tailor.encode.records import Relevance, RowError
from tailor.encode.sources import Resolved
from tailor.encode.tasks import split_of
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.truncation import Scorer
from tailor.spec.data import Data
from tailor.spec.methods.union import Method
from tailor.spec.model import Model


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one kind. special: `text` is the name of one special token."""

    text: str
    supervised: bool
    special: bool
    cut: bool


@dataclass(frozen=True)
class Shown:
    """One row of the preview. name: file:row. note: what preparation does with it.

    examples: the pieces of each example; empty for a row that cannot be read.
    """

    name: str
    note: str
    examples: list[list[Piece]]


def preview(
    data: Data,
    model: Model,
    method: Method,
    *,
    split: Literal["train", "evaluation"],
    rows: int,
    scorer: Scorer | None = None,
) -> Iterator[Shown]:
    """The first rows of each source of a split, encoded again at their full length. scorer: as in `prepare`."""
    inputs = Inputs.of(data, model, method)
    encoder = make_encoder(data, method, inputs.tokenizer, inputs.rules, scorer, inputs.text_format)
    for source_split, _, resolved in inputs.sources:
        if source_split == split or (source_split == "train" and data.holdout is not None):
            yield from _of_source(resolved, source_split, split, rows, encoder, data)


def _of_source(
    resolved: Resolved, source_split: str, split: str, rows: int, encoder: Encoder, data: Data
) -> Iterator[Shown]:
    fmt, shown = get_format(resolved.format), 0
    for part in resolved.files:
        for number, row in Reader(part):
            if shown == rows:
                return
            name = f"{part.label}:{number}"
            try:
                record, _ = guarded(fmt, row, resolved.source.columns)
                if isinstance(record, Relevance):
                    source = resolved.source
                    record = record.instructed(source.query_instruction, source.passage_instruction)
                if split_of(source_split, data.holdout, record) != split:
                    continue
                (whole,) = encoder.encode([record])
                if isinstance(whole, RowError):
                    raise whole
                note, spans = _note(encoder, whole, data)
                examples = [
                    _pieces(encoder.tokenizer, example, span)
                    for example, span in zip(whole, spans, strict=True)
                ]
            except RowError as error:
                note, examples = f"left out ({error.reason}): {error.detail}", []
            shown += 1
            yield Shown(name, note, examples)


def _note(encoder: Encoder, whole: list[EncodedExample], data: Data) -> tuple[str, list[Sequence[Span]]]:
    """What preparation does with a row, as a text, and the ranges of tokens of each example that are not cut."""
    tokens = sum(len(example.input_ids) for example in whole)
    supervised = sum(stop - start for example in whole for start, stop in example.spans)
    everything: list[Sequence[Span]] = [[(0, len(example.input_ids))] for example in whole]
    note = f"{tokens} tokens, {supervised} supervised"
    if encoder.limits is not None:
        note += ", " + " and ".join(_kind(example, whole) for example in whole)
    elif _are_texts(whole):
        positives = sum(example.is_positive for example in whole) - (not encoder.reads_pairs)
        negatives = sum(not example.is_positive for example in whole)
        what = "of passages" if encoder.reads_pairs else "pooled"
        note = f"{tokens} tokens, {supervised} {what}, 1 query, {_count(positives, 'positive')}, {_count(negatives, 'negative')}"
    elif len(whole) > 1:
        note += f", in {len(whole)} examples because the template rewrites earlier turns"
    outcome = encoder.fit(whole)
    if isinstance(outcome, RowError):
        return f"{note}; dropped ({outcome.reason}): {outcome.detail}", everything
    if outcome.chunked:
        return (
            f"{note}; cut into {len(outcome.examples)} chunks of at most {data.max_length} tokens",
            everything,
        )
    if outcome.retrieved:
        return f"{note}; {outcome.passed_over} tokens of the least relevant passages left out", everything
    if outcome.truncated and encoder.limits is not None:
        note = f"{note}; truncated, {outcome.supervised_cut} supervised and {outcome.prompt_cut} prompt tokens cut"
        return note, [part.ranges for part in encoder.kept(whole)]
    if outcome.truncated and _are_texts(whole):
        ends = [[(0, len(piece.input_ids))] for piece in outcome.examples]
        return f"{note}; truncated, {outcome.supervised_cut} tokens cut", [*ends]
    if outcome.truncated:
        note = f"{note}; truncated to {data.max_length}, {outcome.supervised_cut} supervised tokens cut"
        return note, [[(0, data.max_length)]] * len(whole)
    return note, everything


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _are_texts(whole: list[EncodedExample]) -> bool:
    """Whether a row is a query with its passages."""
    return len(whole) > 1 and whole[1].position > 0


def _kind(example: EncodedExample, group: list[EncodedExample]) -> str:
    if len(group) == 2:
        return "chosen" if example.is_positive else "rejected"
    return "desirable" if example.is_positive else "undesirable"


def _pieces(tokenizer: Tokenizer, example: EncodedExample, kept: Sequence[Span]) -> list[Piece]:
    supervised = [False] * len(example.input_ids)
    for start, stop in example.spans:
        supervised[start:stop] = [True] * (stop - start)
    ids = [int(token) for token in example.input_ids]

    def kind(at: int) -> tuple[bool, bool, int]:
        special = ids[at] in tokenizer.added
        # `at + 1` is unique, so each special token gets a group of its own.
        is_cut = not any(start <= at < stop for start, stop in kept)
        return supervised[at], is_cut, at + 1 if special else 0

    pieces = []
    for (learned, cut, special), group in groupby(range(len(ids)), key=kind):
        run = [ids[at] for at in group]
        text = tokenizer.token(run[0]) if special else _text(tokenizer, run)
        pieces.append(Piece(text, learned, bool(special), cut))
    return pieces


def _text(tokenizer: Tokenizer, run: list[int]) -> str:
    # A SentencePiece decoder drops the space of the first token, but here this token is inside a text.
    space = " " if tokenizer.adds_space and tokenizer.token(run[0]).startswith("▁") else ""
    return space + tokenizer.decode(run)
