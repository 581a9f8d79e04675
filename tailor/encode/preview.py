"""The first rows of a recipe's data as tokens: what is supervised, what is cut, and what is left out and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tailor.encode.examples import Encoder
from tailor.encode.formats import get_format
from tailor.encode.guard import guarded
from tailor.encode.masks import Encoded, Span
from tailor.encode.preference_examples import kept
from tailor.encode.prepare import Sources, make_encoder
from tailor.encode.readers import Reader
from tailor.encode.records import RowError
from tailor.encode.sources import Resolved
from tailor.encode.tasks import goes_to
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.encode.truncation import Scorer
from tailor.encode.turns import turn_rules
from tailor.spec.data import Data
from tailor.spec.methods.union import Method
from tailor.spec.model import Model


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind. special: one special token, by its name."""

    text: str
    supervised: bool
    special: bool
    cut: bool


@dataclass(frozen=True)
class Shown:
    """One row. name: file:row. note: what becomes of it. pieces per example; none for a row that cannot be read."""

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
    """The first rows of each source of a split, encoded anew at their whole length. scorer: as in `prepare`."""
    sources = Sources.of(data, method)
    tokenizer = load_tokenizer(model.path, model.revision, data.template).at_date(data.date)
    rules = turn_rules(tokenizer) if sources.chats else None
    encoder = make_encoder(data, method, tokenizer, rules, scorer)
    for own, _, resolved in sources:
        if own == split or (own == "train" and data.holdout is not None):
            yield from _of_source(resolved, own, split, rows, encoder, data)


def _of_source(
    resolved: Resolved, own: str, split: str, rows: int, encoder: Encoder, data: Data
) -> Iterator[Shown]:
    fmt, shown = get_format(resolved.format), 0
    for part in resolved.files:
        for number, row in Reader(part):
            if shown == rows:
                return
            name = f"{part.label}:{number}"
            try:
                record, _ = guarded(fmt, row, resolved.source.columns)
                if goes_to(own, data.holdout, record) != split:
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
                note, examples = f"left out, {error.reason}: {error.detail}", []
            shown += 1
            yield Shown(name, note, examples)


def _note(encoder: Encoder, whole: list[Encoded], data: Data) -> tuple[str, list[Span]]:
    """What becomes of a row in words, and which tokens of each example are not cut."""
    tokens = sum(len(example.input_ids) for example in whole)
    supervised = sum(stop - start for example in whole for start, stop in example.spans)
    everything = [(0, len(example.input_ids)) for example in whole]
    told = f"{tokens} tokens, {supervised} supervised"
    if encoder.limits is not None:
        told += ", " + " and ".join(_kind(example, whole) for example in whole)
    elif _are_texts(whole):
        answers = sum(example.is_positive for example in whole) - 1
        told = f"{tokens} tokens, {supervised} pooled, a query, {answers} answers, {len(whole) - 1 - answers} others"
    elif len(whole) > 1:
        told += f", in {len(whole)} examples, for the template rewrites earlier turns"
    outcome = encoder.fit(whole)
    if isinstance(outcome, RowError):
        return f"{told}; dropped, {outcome.reason}: {outcome.detail}", everything
    if outcome.chunked:
        return f"{told}; cut into {len(outcome.examples)} pieces of at most {data.max_length}", everything
    if outcome.retrieved:
        return f"{told}; {outcome.passed_over} of passages that suit the question less left out", everything
    if outcome.truncated and encoder.limits is not None:
        told = f"{told}; truncated, {outcome.lost} supervised and {outcome.prompt_lost} of prompts lost"
        return told, kept(whole, encoder.limits, data.max_length)
    if outcome.truncated and _are_texts(whole):
        ends = [(0, len(piece.input_ids)) for piece in outcome.examples]
        return f"{told}; truncated, {outcome.lost} tokens lost", ends
    if outcome.truncated:
        told = f"{told}; truncated to {data.max_length}, {outcome.lost} supervised lost"
        return told, [(0, data.max_length)] * len(whole)
    return told, everything


def _are_texts(whole: list[Encoded]) -> bool:
    """Whether a row is a query with its passages."""
    return len(whole) > 1 and whole[1].position > 0


def _kind(example: Encoded, group: list[Encoded]) -> str:
    if len(group) == 2:
        return "chosen" if example.is_positive else "rejected"
    return "desirable" if example.is_positive else "undesirable"


def _pieces(tokenizer: Tokenizer, example: Encoded, kept: Span) -> list[Piece]:
    supervised = [False] * len(example.input_ids)
    for start, stop in example.spans:
        supervised[start:stop] = [True] * (stop - start)
    ids = [int(token) for token in example.input_ids]

    def kind(at: int) -> tuple[bool, bool, int]:
        special = ids[at] in tokenizer.added
        # Special tokens stand alone, so each gets a group of its own.
        return supervised[at], not kept[0] <= at < kept[1], at + 1 if special else 0

    pieces = []
    for (learned, cut, special), group in groupby(range(len(ids)), key=kind):
        run = [ids[at] for at in group]
        text = tokenizer.token(run[0]) if special else _text(tokenizer, run)
        pieces.append(Piece(text, learned, bool(special), cut))
    return pieces


def _text(tokenizer: Tokenizer, run: list[int]) -> str:
    # A SentencePiece decoder takes the first token's space away, which here stands inside a text.
    space = " " if tokenizer.adds_space and tokenizer.token(run[0]).startswith("▁") else ""
    return space + tokenizer.decode(run)
