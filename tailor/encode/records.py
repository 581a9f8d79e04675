"""Records: the content of a data row, independent of the format of its file.

The data changes its name once per stage:

    row        one entry of a source file: the columns of a CSV file, an object of a JSONL file
    record     what the row means (this module): a conversation, a prompt with its completion, a text, a preference
               pair, a rated answer, or a query with passages; the format converts the row
    example    token ids with the spans to supervise (`encode.masks.EncodedExample`); the token store keeps it as
               `data.token_store.Example`. Most records make one example, a preference pair makes two
    document   an example, or a part of one, in the token stream of a forward pass; attention stays inside it
    batch row  the documents that share one row of a batch (`data.rows.Row`): a pack of examples, one example, or a
               slice of joined examples
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any


class RowError(Exception):
    """Raised for a row that is left out. The report counts rows by `reason` and shows `detail` of the first few."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def has_surrogate(text: str) -> bool:
    """Whether a text has a lone surrogate, as from a JSON escape. It cannot be tokenized or written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def require_unicode(text: str) -> None:
    """RowError for a text with a lone surrogate."""
    if has_surrogate(text):
        raise RowError("bad_encoding", "the text contains a character that is not valid Unicode")


def unreadable_value(error: Exception) -> RowError:
    """The reason for a row that fails in a way that no reader, format or template foresees."""
    if isinstance(error, RecursionError):
        return RowError("too_deep", "its values are nested too deeply")
    what = " ".join(str(error).split())[:200]
    return RowError("bad_value", f"a value that cannot be read: {type(error).__name__}: {what}")


@dataclass(frozen=True)
class Chat:
    """A conversation as OpenAI-style messages. Each content is a string, the arguments of a tool call are an object."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Completion:
    """A prompt and the response to learn, without a chat template."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Text:
    """A plain text, as in pretraining."""

    text: str


Answer = Chat | Completion
"""A prompt with an answer to it."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as in DPO."""

    chosen: Answer
    rejected: Answer


@dataclass(frozen=True)
class Rated:
    """An answer, and whether it is desirable, as in KTO."""

    answer: Answer
    desirable: bool


Instructed = tuple[str | None, str]
"""(instruction or None, text): a text to embed."""


@dataclass(frozen=True)
class Relevance:
    """A query with its relevant passages (at least one) and its irrelevant ones."""

    query: Instructed
    positives: tuple[Instructed, ...]
    negatives: tuple[Instructed, ...]
    scores: tuple[float, ...] | None = None
    """A teacher's score of each passage, the positives first. None if the row has none that can be used."""
    without_scores: str = field(default="", compare=False)
    """Why it has none."""

    def instructed(self, query: str | None, passage: str | None) -> Relevance:
        """The same record, in which texts without an instruction have these."""

        def filled(texts: tuple[Instructed, ...], instruction: str | None) -> tuple[Instructed, ...]:
            return tuple((own or instruction, text) for own, text in texts)

        (first,) = filled((self.query,), query)
        return replace(
            self,
            query=first,
            positives=filled(self.positives, passage),
            negatives=filled(self.negatives, passage),
        )


Record = Chat | Completion | Text | Pair | Rated | Relevance


def content_hash(record: Record) -> int:
    """A 64-bit hash that decides whether a record goes to the holdout. It depends on the content only, not on the row's position.

    Records with the same prompt or query have the same hash, so that a holdout never separates them.
    """
    import xxhash

    return int(xxhash.xxh3_64_intdigest(json.dumps(_parts(record), sort_keys=True).encode()))


def row_hash(record: Record) -> int:
    """A 64-bit hash of everything in a record: two records with the same hash are duplicates."""
    import xxhash

    return int(xxhash.xxh3_64_intdigest(json.dumps(_everything(record), sort_keys=True).encode()))


def _everything(record: Record) -> Any:
    match record:
        case Pair():
            return [_parts(record.chosen), _parts(record.rejected)]
        case Rated():
            return [_parts(record.answer), record.desirable]
        case Relevance():
            texts = [record.query, record.positives, record.negatives]
            return texts if record.scores is None else [*texts, record.scores]
        case _:
            return _parts(record)


def _parts(record: Record) -> Any:
    match record:
        case Text():
            return record.text
        case Completion():
            return [record.prompt, record.response]
        case Chat():
            return [record.messages, record.tools]
        case Pair():
            return _prompt(record.chosen) or [_parts(record.chosen), _parts(record.rejected)]
        case Rated():
            return _prompt(record.answer) or [_parts(record.answer), record.desirable]
        case Relevance():
            return list(record.query)


def _prompt(answer: Answer) -> Any:
    """What comes before the first learned answer.

    Empty without a prompt. The caller then hashes the answer: equal empty prompts would put all such rows into one split.
    """
    if isinstance(answer, Completion):
        return answer.prompt
    learned = (turn["role"] == "assistant" and turn.get("weight") != 0 for turn in answer.messages)
    prompt = answer.messages[: next((index for index, is_learned in enumerate(learned) if is_learned), -1)]
    return [prompt, answer.tools] if prompt else []
