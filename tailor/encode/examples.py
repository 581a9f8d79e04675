"""Encodes records as examples of at most `max_length` tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailor.encode import bm25, embedding_examples, pair_examples, preference_examples, truncation
from tailor.encode.control_text import CONTROL
from tailor.encode.embedding_examples import GRITLM, TextEncoder, TextFormat, TextLimits
from tailor.encode.masks import ChatEncoder, EncodedExample, prefix_of
from tailor.encode.preference_examples import AnswerLimits, Kept
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
from tailor.encode.report import SHORT
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.truncation import Scorer, targets
from tailor.encode.turns import TurnRules
from tailor.errors import DataError, ModelError, TailorError
from tailor.spec.data import Chunk, Retrieve


@dataclass(frozen=True)
class Outcome:
    """The examples of one row, and what was cut to make them fit into `max_length`."""

    examples: list[EncodedExample]
    truncated: bool = False
    supervised_cut: int = 0
    """Supervised tokens cut away; for texts to embed, all tokens cut away."""
    prompt_cut: int = 0
    """Tokens cut away at the start of the prompts of preference data."""
    chunked: bool = False
    unsupervised: int = 0
    """Chunks left out because they have no supervised token."""
    retrieved: bool = False
    passed_over: int = 0
    """Tokens of the passages left out because they are less relevant to the question."""
    partly_read: int = 0
    """Passages and questions longer than the embedder's maximum length, whose ends did not count for the score."""


class Encoder:
    """Encodes batches of records. Can be pickled, so that it is sent to each worker process once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rules: TurnRules | None,
        *,
        train_on: str,
        max_length: int | None,
        on_long: str,
        min_length: int | None = None,
        chunk: Chunk | None = None,
        retrieve: Retrieve | None = None,
        scorer: Scorer | None = None,
        limits: AnswerLimits | None = None,
        text_limits: TextLimits | None = None,
        text_format: TextFormat = GRITLM,
        drop_reasoning: bool = False,
    ) -> None:
        """rules: of the chat template, None when no record is a conversation. max_length: None for no limit.

        DataError when the tokenizer's prefix and the overlap fill a chunk.

        scorer: scores the passages of long prompts instead of BM25. limits: required for records of type `Pair` or `Rated`.
        text_limits, text_format: of records of type `Relevance`, for which the limits are required.
        """
        self.tokenizer = tokenizer
        self._train_on = train_on
        self._max_length, self._min_length = max_length, min_length
        self._on_long = on_long
        self._chunk = chunk or Chunk()
        self._retrieve = retrieve or Retrieve()
        self.scorer = scorer
        self.limits = limits
        self._text_limits = text_limits
        self._text_encoder = TextEncoder(tokenizer, text_format)
        self._chats = None
        chunk_length = max_length if on_long == "chunk" else None
        if chunk_length is not None and self._chunk.overlap + len(tokenizer.prefix) >= chunk_length:
            raise DataError(
                f"data.chunk.overlap: a chunk starts with {len(tokenizer.prefix)} tokens that the tokenizer puts before every "
                f"text, and {self._chunk.overlap} tokens of overlap leave no new one in data.max_length: {chunk_length}",
                hint="lower data.chunk.overlap",
            )
        if rules is not None:
            self._chats = ChatEncoder(
                tokenizer, rules, train_on, drop_reasoning=drop_reasoning, chunk_length=chunk_length
            )

    @property
    def fills_negatives(self) -> bool:
        """Whether a query without negatives is given passages of other rows."""
        limits = self._text_limits
        return limits is not None and limits.negatives and not limits.scores

    @property
    def reads_pairs(self) -> bool:
        """Whether a query is read together with each of its passages."""
        return self._text_limits is not None and self._text_limits.pairs

    @property
    def distills(self) -> bool:
        """Whether the scores of a teacher are used."""
        return self._text_limits is not None and self._text_limits.scores

    def __call__(self, records: Sequence[Record]) -> list[Outcome | RowError]:
        """The outcome of each record, in order. All records of a batch have the same type."""
        return [self.fit(result) for result in self.encode(records)]

    def encode(self, records: Sequence[Record]) -> list[list[EncodedExample] | RowError]:
        """The examples of each record at their full length."""
        try:
            return self._encode(records)
        except (UnicodeEncodeError, TypeError):
            # A lone surrogate (from a JSON escape) cannot be encoded. Encode one by one to find its rows.
            if len(records) == 1:
                return [RowError("bad_encoding", "the text contains a character that is not valid Unicode")]
            return [self.encode([record])[0] for record in records]
        except TailorError:
            raise
        except Exception as error:
            if len(records) == 1:
                return [unreadable_value(error)]
            return [self.encode([record])[0] for record in records]

    def _encode(self, records: Sequence[Record]) -> list[list[EncodedExample] | RowError]:
        if not records:
            return []
        if isinstance(records[0], Chat):
            assert self._chats is not None
            return self._chats([record for record in records if isinstance(record, Chat)])
        if isinstance(records[0], Pair | Rated):
            rows = [record for record in records if isinstance(record, Pair | Rated)]
            return preference_examples.grouped(rows, self.encode(preference_examples.answers(rows)))
        if isinstance(records[0], Relevance):
            groups = [record for record in records if isinstance(record, Relevance)]
            if self._text_limits is not None and self._text_limits.pairs:
                return pair_examples.pairs(self.tokenizer, groups, self._text_limits)
            return embedding_examples.relevances(self._text_encoder, groups, self._text_limits)
        if isinstance(records[0], Completion):
            return self._completions([record for record in records if isinstance(record, Completion)])
        return self._texts([record for record in records if isinstance(record, Text)])

    def _texts(self, records: list[Text]) -> list[list[EncodedExample] | RowError]:
        """BOS if the tokenizer adds one, the text, EOS. All tokens are supervised."""
        prefix, eos = self.tokenizer.prefix, require_eos(self.tokenizer)
        results: list[list[EncodedExample] | RowError] = []
        for ids in self.tokenizer.encode_batch([record.text for record in records]):
            if prefix and ids[: len(prefix)].tolist() == prefix:
                results.append(_DOUBLE_BOS)
                continue
            end = [] if len(ids) and ids[-1] == eos else [eos]
            whole = np.concatenate([np.array(prefix, np.int32), ids, np.array(end, np.int32)])
            results.append([EncodedExample(whole, [(0, len(whole))], head=len(prefix))])
        return results

    def _completions(self, records: list[Completion]) -> list[list[EncodedExample] | RowError]:
        """The prompt, encoded on its own as at generation; the response as its continuation; EOS."""
        prefix, eos = self.tokenizer.prefix, require_eos(self.tokenizer)
        prompts = self.tokenizer.encode_batch([record.prompt for record in records])
        responses = self.tokenizer.encode_batch([record.response for record in records], continues=True)
        results: list[list[EncodedExample] | RowError] = []
        for prompt, response in zip(prompts, responses, strict=True):
            if prefix and prompt[: len(prefix)].tolist() == prefix:
                results.append(_DOUBLE_BOS)
                continue
            answer = response.tolist()
            if answer[-1:] != [eos]:
                answer.append(eos)
            if answer.index(eos) < len(answer) - 1:
                results.append(RowError(CONTROL, "the response has the end-of-text token inside its text"))
                continue
            whole = np.concatenate([np.array(prefix, np.int32), prompt, np.array(answer, np.int32)])
            start = 0 if self._train_on == "everything" else len(whole) - len(answer)
            results.append([EncodedExample(whole, [(start, len(whole))], head=len(prefix))])
        return results

    def fit(self, result: list[EncodedExample] | RowError) -> Outcome | RowError:
        """Apply `on_long` to the examples of a record that are longer than allowed."""
        if isinstance(result, RowError):
            return result
        longest = max(len(example.input_ids) for example in result)
        if self._min_length is not None and longest < self._min_length:
            return RowError(SHORT, f"{longest} tokens; data.min_length is {self._min_length}")
        if self.limits is not None:
            return self._fit_answers(result, self.limits)
        if self._text_limits is not None and len(result) > 1 and result[1].position:
            return self._fit_texts(result, self._text_limits)
        outcome = Outcome(result)
        if self._max_length is not None and longest > self._max_length:
            if self._on_long == "drop":
                return RowError("too_long", f"{longest} tokens; data.max_length is {self._max_length}")
            outcome = self._fitted(result, self._max_length)
            if isinstance(outcome, RowError):
                return outcome
        kept = [example for example in outcome.examples if targets(example.spans)]
        if not kept:
            return RowError("nothing_supervised", "the row has no supervised token")
        unsupervised = len(outcome.examples) - len(kept) if outcome.chunked else 0
        return replace(outcome, examples=kept, unsupervised=unsupervised)

    def _fit_answers(self, group: list[EncodedExample], limits: AnswerLimits) -> Outcome | RowError:
        """Keep, truncate or drop the answers of a row. A pair is never split."""
        problem = preference_examples.too_long(group, limits, self._max_length)
        if not problem:
            return Outcome(group)
        if self._on_long == "drop":
            return RowError("too_long", problem)
        parts = self.kept(group)
        pieces = preference_examples.cut(group, parts)
        if isinstance(pieces, RowError):
            return pieces
        if not all(targets(piece.spans) for piece in pieces):
            return RowError("nothing_supervised", "truncation leaves no token of an answer")
        return Outcome(
            pieces,
            truncated=True,
            supervised_cut=_supervised_cut(group, pieces),
            prompt_cut=sum(part.start - part.head for part in parts),
        )

    def kept(self, group: list[EncodedExample]) -> list[Kept]:
        """What truncation keeps of each answer of a row."""
        assert self.limits is not None
        assert self._max_length is not None
        heads = [prefix_of(example.input_ids, self.tokenizer) for example in group]
        return preference_examples.kept(group, heads, self.limits, self._max_length)

    def _fit_texts(self, group: list[EncodedExample], limits: TextLimits) -> Outcome | RowError:
        """Keep, truncate or drop a query with its passages."""
        problem = embedding_examples.too_long(group, limits)
        if not problem:
            return Outcome(group)
        if self._on_long == "drop":
            return RowError("too_long", problem)
        pieces = embedding_examples.cut(group, limits)
        if isinstance(pieces, RowError):
            return pieces
        cut = sum(map(_length, group)) - sum(map(_length, pieces))
        return Outcome(pieces, truncated=True, supervised_cut=cut)

    def _fitted(self, examples: list[EncodedExample], max_length: int) -> Outcome | RowError:
        if self._on_long == "chunk":
            overlap = self._chunk.overlap
            for example in examples:
                if len(example.input_ids) > max_length and example.head + overlap >= max_length:
                    return RowError(
                        "too_long",
                        f"{len(example.input_ids)} tokens; every chunk starts with the system turn of {example.head} tokens, "
                        f"which with an overlap of {overlap} leaves no new one in data.max_length: {max_length}",
                    )
            pieces = [
                piece for example in examples for piece in truncation.chunks(example, max_length, self._chunk)
            ]
            return Outcome(pieces, chunked=True)
        if self._on_long == "truncate":
            cut = [truncation.truncated(example, max_length) for example in examples]
            return Outcome(cut, truncated=True, supervised_cut=_supervised_cut(examples, cut))
        return self._with_passages(examples, max_length)

    def _with_passages(self, examples: list[EncodedExample], max_length: int) -> Outcome | RowError:
        """Every example with only the passages of its prompt that are most relevant to its question."""
        kept, score, before = [], self.scorer or bm25.scores, self._partly_read
        for example in examples:
            shortened: EncodedExample | None = example
            if len(example.input_ids) > max_length:
                shortened = truncation.retrieved(
                    example, max_length, self._retrieve, self.tokenizer.decode, score
                )
            if shortened is None and not _has_prompt(example):
                return RowError(
                    "too_long",
                    f"{len(example.input_ids)} tokens; plain text has no question for which passages could be retrieved",
                )
            if shortened is None:
                return RowError(
                    "too_long",
                    f"{len(example.input_ids)} tokens; question and answer leave no room for two passages "
                    f"in data.max_length: {max_length}",
                )
            kept.append(shortened)
        return Outcome(
            kept,
            retrieved=True,
            passed_over=sum(map(_length, examples)) - sum(map(_length, kept)),
            supervised_cut=_supervised_cut(examples, kept),
            partly_read=self._partly_read - before,
        )

    @property
    def _partly_read(self) -> int:
        return self.scorer.truncated if self.scorer is not None else 0


_DOUBLE_BOS = RowError("double_bos", "the text starts with a BOS token, and the tokenizer adds another one")


def require_eos(tokenizer: Tokenizer) -> int:
    """The end-of-sequence id. ModelError without one, as a model could not learn where a text ends."""
    if tokenizer.eos_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name} has no end-of-sequence token",
            hint="set eos_token in the model's tokenizer_config.json",
        )
    return tokenizer.eos_id


def _supervised_cut(before: Sequence[EncodedExample], after: Sequence[EncodedExample]) -> int:
    """Number of supervised targets that were cut away."""
    total, remaining = (sum(targets(example.spans) for example in examples) for examples in (before, after))
    return total - remaining


def _has_prompt(example: EncodedExample) -> bool:
    """Whether the last answer has a prompt before it, besides BOS."""
    return bool(example.spans) and example.spans[-1][0] > example.head


def _length(example: EncodedExample) -> int:
    return len(example.input_ids)
