"""Records to examples of at most `max_length` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailor.encode import bm25, embedding_examples, preference_examples, truncation
from tailor.encode.embedding_examples import TextEncoder, TextLimits
from tailor.encode.masks import ChatEncoder, Encoded
from tailor.encode.preference_examples import AnswerLimits
from tailor.encode.records import (
    Chat,
    Completion,
    Pair,
    Rated,
    Record,
    Relevance,
    RowError,
    Text,
    unreadable_value,
)
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.truncation import Scorer, targets
from tailor.encode.turns import TurnRules
from tailor.errors import ModelError, TailorError
from tailor.spec.data import Chunk, Retrieve


@dataclass(frozen=True)
class Outcome:
    """The examples of one row, and what it cost to make them fit."""

    examples: list[Encoded]
    truncated: bool = False
    lost: int = 0
    """Supervised tokens cut away."""
    prompt_lost: int = 0
    """Tokens cut away at the start of the prompts of answers."""
    chunked: bool = False
    idle: int = 0
    """Chunks that were left out, for nothing in them is supervised."""
    retrieved: bool = False
    passed_over: int = 0
    """Tokens of passages that suited the question less."""
    partly_read: int = 0
    """Passages and questions that were longer than the embedder reads, so that their ends had no part in the score."""


class Encoder:
    """Encodes batches of records. Picklable, so that it can be sent to other processes once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rules: TurnRules | None,
        *,
        train_on: str,
        max_length: int | None,
        on_long: str,
        chunk: Chunk | None = None,
        retrieve: Retrieve | None = None,
        scorer: Scorer | None = None,
        limits: AnswerLimits | None = None,
        text_limits: TextLimits | None = None,
    ) -> None:
        """`limits` are given when the records are answers, `Pair` or `Rated`; `text_limits` when some may be `Relevance`.

        `max_length` is None where any length fits. scorer: of the passages of long prompts, in BM25's place.
        """
        self.tokenizer = tokenizer
        self._train_on = train_on
        self._max_length = max_length
        self._on_long = on_long
        self._chunk = chunk or Chunk()
        self._retrieve = retrieve or Retrieve()
        self.scorer = scorer
        self.limits = limits
        self._text_limits = text_limits
        self._chats = ChatEncoder(tokenizer, rules, train_on) if rules is not None else None

    def __call__(self, records: Sequence[Record]) -> list[Outcome | RowError]:
        """Per record its outcome, in order. All records of a batch are of one kind."""
        return [self.fit(result) for result in self.encode(records)]

    def encode(self, records: Sequence[Record]) -> list[list[Encoded] | RowError]:
        """Per record its examples at their whole length."""
        try:
            return self._encode(records)
        except (UnicodeEncodeError, TypeError):
            # A lone surrogate (from a JSON escape) cannot be encoded; find out in which rows.
            if len(records) == 1:
                return [RowError("bad_encoding", "the text has a character that is not valid Unicode")]
            return [self.encode([record])[0] for record in records]
        except TailorError:
            raise
        except Exception as error:
            if len(records) == 1:
                return [unreadable_value(error)]
            return [self.encode([record])[0] for record in records]

    def _encode(self, records: Sequence[Record]) -> list[list[Encoded] | RowError]:
        if not records:
            return []
        if isinstance(records[0], Chat):
            assert self._chats is not None
            return self._chats([record for record in records if isinstance(record, Chat)])
        if isinstance(records[0], Pair | Rated):
            rows = [record for record in records if isinstance(record, Pair | Rated)]
            return preference_examples.grouped(rows, self.encode(preference_examples.answers(rows)))
        if isinstance(records[0], Relevance):
            assert self._text_limits is not None
            own = [record for record in records if isinstance(record, Relevance)]
            return embedding_examples.relevances(TextEncoder(self.tokenizer), own, self._text_limits)
        if isinstance(records[0], Completion):
            return self._completions([record for record in records if isinstance(record, Completion)])
        return self._texts([record for record in records if isinstance(record, Text)])

    def _texts(self, records: list[Text]) -> list[list[Encoded] | RowError]:
        """BOS if the tokenizer adds one, the text, EOS; everything is supervised."""
        prefix, eos = self.tokenizer.prefix, require_eos(self.tokenizer)
        results: list[list[Encoded] | RowError] = []
        for ids in self.tokenizer.encode_batch([record.text for record in records]):
            if prefix and ids[: len(prefix)] == prefix:
                results.append(_DOUBLE_BOS)
                continue
            if not ids or ids[-1] != eos:
                ids.append(eos)
            whole = np.fromiter(prefix + ids if prefix else ids, np.int32)
            results.append([Encoded(whole, [(0, len(whole))])])
        return results

    def _completions(self, records: list[Completion]) -> list[list[Encoded] | RowError]:
        """The prompt encoded alone, as generation encodes it; then the response as its continuation, and EOS."""
        prefix, eos = self.tokenizer.prefix, require_eos(self.tokenizer)
        prompts = self.tokenizer.encode_batch([record.prompt for record in records])
        responses = self.tokenizer.encode_continuation([record.response for record in records])
        results: list[list[Encoded] | RowError] = []
        for prompt, response in zip(prompts, responses, strict=True):
            if prefix and prompt[: len(prefix)] == prefix:
                results.append(_DOUBLE_BOS)
                continue
            answer = list(response.ids)
            if answer[-1:] != [eos]:
                answer.append(eos)
            whole = np.array(prefix + prompt + answer, np.int32)
            start = 0 if self._train_on == "everything" else len(whole) - len(answer)
            results.append([Encoded(whole, [(start, len(whole))])])
        return results

    def fit(self, result: list[Encoded] | RowError) -> Outcome | RowError:
        """What `on_long` makes of a record's examples."""
        if isinstance(result, RowError):
            return result
        if self.limits is not None:
            return self._fit_answers(result, self.limits)
        if self._text_limits is not None and len(result) > 1 and result[1].position:
            return self._fit_texts(result, self._text_limits)
        outcome = Outcome(result)
        longest = max(len(example.input_ids) for example in result)
        if self._max_length is not None and longest > self._max_length:
            if self._on_long == "drop":
                return RowError("too_long", f"{longest} tokens, max_length is {self._max_length}")
            outcome = self._fitted(result, self._max_length)
            if isinstance(outcome, RowError):
                return outcome
        kept = [example for example in outcome.examples if targets(example.spans)]
        if not kept:
            return RowError("nothing_supervised", "no token of it would be learned")
        idle = len(outcome.examples) - len(kept) if outcome.chunked else 0
        return replace(outcome, examples=kept, idle=idle)

    def _fit_answers(self, group: list[Encoded], limits: AnswerLimits) -> Outcome | RowError:
        """The group as it is, cut, or left out: never a part of it."""
        over = preference_examples.too_long(group, limits, self._max_length)
        if not over:
            return Outcome(group)
        if self._on_long == "drop":
            return RowError("too_long", over)
        spans = preference_examples.kept(group, limits, self._max_length)
        pieces = preference_examples.cut(group, spans)
        if isinstance(pieces, RowError):
            return pieces
        if not all(targets(piece.spans) for piece in pieces):
            return RowError("nothing_supervised", "no token of an answer is left")
        lost = sum(
            targets(whole.spans) - targets(piece.spans) for whole, piece in zip(group, pieces, strict=True)
        )
        return Outcome(pieces, truncated=True, lost=lost, prompt_lost=sum(begin for begin, _ in spans))

    def _fit_texts(self, group: list[Encoded], limits: TextLimits) -> Outcome | RowError:
        """A query with its passages as they are, cut, or left out."""
        over = embedding_examples.too_long(group, limits)
        if not over:
            return Outcome(group)
        if self._on_long == "drop":
            return RowError("too_long", over)
        pieces = embedding_examples.cut(group, limits)
        if isinstance(pieces, RowError):
            return pieces
        lost = sum(len(example.input_ids) for example in group) - sum(
            len(example.input_ids) for example in pieces
        )
        return Outcome(pieces, truncated=True, lost=lost)

    def _fitted(self, examples: list[Encoded], most: int) -> Outcome | RowError:
        if self._on_long == "chunk":
            pieces = [
                piece for example in examples for piece in truncation.chunks(example, most, self._chunk)
            ]
            return Outcome(pieces, chunked=True)
        if self._on_long == "truncate":
            cut = [truncation.truncated(example, most) for example in examples]
            return Outcome(cut, truncated=True, lost=_lost(examples, cut))
        return self._with_passages(examples, most)

    def _with_passages(self, examples: list[Encoded], most: int) -> Outcome | RowError:
        """Every example with those passages of its prompt that suit its question."""
        kept, score, before = [], self.scorer or bm25.scores, self._partly_read
        for example in examples:
            one: Encoded | None = example
            if len(example.input_ids) > most:
                one = truncation.retrieved(example, most, self._retrieve, self.tokenizer.decode, score)
            if one is None:
                return RowError(
                    "too_long",
                    f"{len(example.input_ids)} tokens, and what must stay leaves no room for two passages in {most}",
                )
            kept.append(one)
        over = sum(map(_length, examples)) - sum(map(_length, kept))
        cut = self._partly_read - before
        return Outcome(kept, retrieved=True, passed_over=over, lost=_lost(examples, kept), partly_read=cut)

    @property
    def _partly_read(self) -> int:
        return self.scorer.truncated if self.scorer is not None else 0


_DOUBLE_BOS = RowError("double_bos", "the text begins with a BOS token, and the tokenizer adds another")


def require_eos(tokenizer: Tokenizer) -> int:
    """The end-of-sequence id, or a ModelError: without one a model cannot learn where a text ends."""
    if tokenizer.eos_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name} has no end-of-sequence token",
            hint="set eos_token in its tokenizer_config.json",
        )
    return tokenizer.eos_id


def _lost(before: Sequence[Encoded], after: Sequence[Encoded]) -> int:
    """Supervised targets that are no more."""
    whole, left = (sum(targets(one.spans) for one in examples) for examples in (before, after))
    return whole - left


def _length(example: Encoded) -> int:
    return len(example.input_ids)
