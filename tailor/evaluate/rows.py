"""The rows of an evaluation as a model sees them: prompts to answer, and sequences whose tokens are scored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailor.data.token_store import Example, Split
from tailor.encode.examples import Encoder
from tailor.encode.formats.messages import MESSAGES
from tailor.encode.readers import Reader
from tailor.encode.records import Chat, Completion, RowError
from tailor.encode.sources import find_files
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import DataError
from tailor.evaluate.generation import before_stop
from tailor.evaluate.in_training.exact_match import Questions as LastQuestion
from tailor.evaluate.in_training.exact_match import stops
from tailor.evaluate.scores import Fact
from tailor.evaluate.windows import Windows
from tailor.evaluate.words import fact_words
from tailor.spec.long import LongPerplexity, Texts
from tailor.spec.suite import Questions

Ids = list[int]
Spans = list[tuple[int, int]]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Scored:
    """Tokens, and the half-open spans of them that are scored."""

    ids: Ids
    spans: Spans


@dataclass(frozen=True)
class Question:
    """A prompt to answer, and what the answer is held against."""

    place: dict[str, Any]
    """Where the row stands: `source` and `row`, from 1."""
    prompt: Ids
    question: str
    rendered: str
    reference: str | None = None
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A row of text or a conversation, in one sequence or several."""

    place: dict[str, Any]
    sequences: list[Scored]


@dataclass(frozen=True)
class Choice:
    """A question with the answers to choose from; sequence n is the question followed by answer n."""

    place: dict[str, Any]
    question: str
    choices: list[str]
    answer: int
    """Index of the right one, from 0."""
    sequences: list[Scored]


@dataclass(frozen=True)
class LongText:
    """A text, read in windows of each length."""

    place: dict[str, Any]
    windows: list[Windows]


def passages(split: Split, limit: int | None) -> list[Passage]:
    """The first `limit` rows; the pieces of one row belong together."""
    found = []
    for (source, row), indexes in _rows(split, limit):
        examples = [split.example(index) for index in indexes]
        sequences = [
            Scored(one.input_ids.tolist(), [(int(a), int(b)) for a, b in one.spans]) for one in examples
        ]
        found.append(Passage({"source": source, "row": row}, sequences))
    return found


def questions(
    split: Split,
    limit: int | None,
    tokenizer: Tokenizer,
    template: dict[str, Any] | None,
    *,
    chunked: bool,
) -> tuple[list[Question], int]:
    """Of the first `limit` rows, those with something before their last answer, which is the reference.

    `chunked`: rows of several examples were cut (`on_long: chunk`), their questions too. They are left out, and their
    number is the second value. DataError when no row has a question: plain text asks nothing.
    """
    ends, shown = stops(tokenizer, template), LastQuestion(tokenizer, template)
    found, left_out = [], 0
    for (source, row), indexes in _rows(split, limit):
        if chunked and len(indexes) > 1:
            left_out += 1
            continue
        for index in indexes:
            example = split.example(index)
            if not _asks(example):
                continue
            start, stop = (int(bound) for bound in example.spans[-1])
            ids = example.input_ids.tolist()
            reference = tokenizer.decode(before_stop(ids[start:stop], ends), skip_special_tokens=True)
            rendered = tokenizer.decode(ids[:start])
            place = {"source": source, "row": row}
            found.append(
                Question(place, ids[:start], shown.last(rendered), rendered, reference=reference.strip())
            )
    if not found:
        raise no_question()
    return found, left_out


def has_question(split: Split, limit: int | None, *, chunked: bool) -> bool:
    """Whether `questions` would find any."""
    kept = (indexes for _, indexes in _rows(split, limit) if not chunked or len(indexes) == 1)
    return any(_asks(split.example(index)) for indexes in kept for index in indexes)


def _asks(example: Example) -> bool:
    """Whether more stands before the last answer than the token that begins every text."""
    return int(example.spans[-1][0]) > 1


def no_question(key: str = "") -> DataError:
    return DataError(
        f"{key}no evaluation row has a question before its answer, so there is nothing to generate",
        hint="evaluate on conversations or prompt/response rows with train_on: assistant, or take perplexity alone",
    )


def _rows(split: Split, limit: int | None) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """((source, row), its examples) in order."""
    numbered = itertools.groupby(
        range(len(split)), key=lambda at: (int(split.source[at]), int(split.row[at]))
    )
    for place, indexes in itertools.islice(numbered, limit):
        yield place, list(indexes)


def fact_questions(data: Questions, where: str, tokenizer: Tokenizer, *, plain: bool) -> list[Question]:
    """The rows of a question set with facts. `plain`: the question goes without a chat template."""
    found = []
    for place, row in _read(data, where, ("question", "facts")):
        chat = _conversation(row["question"], place)
        facts = tuple(_fact(value, place) for value in _list(row["facts"], "facts", place))
        ids, text, rendered = _prompt(chat, tokenizer, plain, place)
        found.append(Question(_place(place), ids, text, rendered, facts=facts))
    return found


def texts(data: Texts, where: str) -> Iterator[tuple[str, str]]:
    """(file:row, text) of each row."""
    for place, row in _read(data, where, ("text",)):
        yield place, _text(row["text"], "text", place)


def long_texts(task: LongPerplexity, where: str, tokenizer: Tokenizer) -> tuple[list[LongText], int]:
    """The texts of at least the longest length, and how many others there are. DataError when there is none."""
    found, short, longest = [], 0, max(task.lengths)
    for place, text in texts(task.data, where):
        ids = tokenizer.encode_prompt(text)[: task.tokens_per_text]
        if len(ids) < longest:
            short += 1
            continue
        windows = [
            Windows(ids, length, task.stride or length // 2, task.prefill) for length in sorted(task.lengths)
        ]
        found.append(LongText(_place(place), windows))
    if not found:
        raise DataError(
            f"{where}: none of {short} texts has the {longest} tokens that lengths asks for",
            hint="give longer texts, or shorter lengths",
        )
    return found, short


def choices(data: Questions, where: str, tokenizer: Tokenizer, *, plain: bool) -> list[Choice]:
    """The rows of a multiple-choice set, each answer tokenized as a trained answer would be, without its stop."""
    rules = None if plain else turn_rules(tokenizer)
    encoder = Encoder(tokenizer, rules, train_on="last_assistant", max_length=1 << 30, on_long="drop")
    ends = [*(rules.end_ids if rules else ()), *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])]
    found = []
    for place, row in _read(data, where, ("question", "choices", "answer")):
        turns = _conversation(row["question"], place)
        texts = [_text(value, "choices", place) for value in _list(row["choices"], "choices", place)]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise DataError(f"{place}: `choices` must be two texts or more, each another")
        right = _index(row["answer"], texts, place)
        records: list[Any] = [_with_answer(turns, text, place, plain=plain) for text in texts]
        sequences = []
        for text, encoded in zip(texts, encoder.encode(records), strict=True):
            if isinstance(encoded, RowError):
                raise DataError(f"{place}: {encoded.detail or encoded.reason}")
            example = encoded[-1]
            start, stop = example.spans[-1]
            ids = [int(token) for token in example.input_ids]
            stop = start + len(before_stop(ids[start:stop], ends))
            if stop <= max(start, 1):
                raise DataError(f"{place}: the answer {text!r} has no tokens to score")
            sequences.append(Scored(ids[:stop], [(start, stop)]))
        found.append(Choice(_place(place), _shown(turns), texts, right, sequences))
    return found


def _read(data: Questions | Texts, where: str, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:row, the fields) of each row. DataError names the first row that lacks one, or that cannot be read."""
    count = 0
    for part in find_files(data, where):
        for number, row in Reader(part):
            if count == data.limit:
                return
            place = f"{part.label}:{number}"
            if isinstance(row, RowError):
                raise DataError(f"{place}: {row.detail or row.reason}")
            if not isinstance(row, Mapping):
                raise DataError(f"{place}: a row must be an object")
            picked = {field: row.get(data.columns.get(field, field)) for field in fields}
            for field, value in picked.items():
                if value is None:
                    raise DataError(
                        f"{place}: missing key `{data.columns.get(field, field)}`",
                        hint=f"name the column in {where}.columns: {{{field}: …}}",
                    )
            count += 1
            yield place, picked
    if not count:
        raise DataError(f"{where} {data.path}: no rows")


def _conversation(value: Any, place: str) -> list[dict[str, Any]]:
    """A question: a text, or messages up to where the model answers."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: the question is empty")
        return [{"role": "user", "content": value}]
    try:
        record = MESSAGES.record({"messages": value}, {})
    except RowError as error:
        raise DataError(f"{place}: {error.detail or error.reason}") from None
    assert isinstance(record, Chat)
    if record.messages[-1]["role"] == "assistant":
        raise DataError(f"{place}: the messages of a question must not end with an answer")
    return record.messages


def _with_answer(turns: list[dict[str, Any]], text: str, place: str, *, plain: bool) -> Chat | Completion:
    if not plain:
        return Chat([*turns, {"role": "assistant", "content": text}])
    question = _plain_text(turns, place)
    return Completion(question, text if question[-1].isspace() else f" {text}")


def _prompt(
    turns: list[dict[str, Any]], tokenizer: Tokenizer, plain: bool, place: str
) -> tuple[Ids, str, str]:
    """Token ids, the last turn's text, and what the model sees as text."""
    if plain:
        text = _plain_text(turns, place)
        return tokenizer.encode_prompt(text), text, text
    rendered = tokenizer.render(turns, None, add_generation_prompt=True)
    return tokenizer.encode(rendered), _shown(turns), rendered


def _plain_text(turns: list[dict[str, Any]], place: str) -> str:
    if len(turns) > 1:
        raise DataError(
            f"{place}: a conversation needs a chat template, which this model was trained without",
            hint="give the question as a text",
        )
    return str(turns[0]["content"])


def _shown(turns: list[dict[str, Any]]) -> str:
    return str(turns[-1].get("content", ""))


def _list(value: Any, field: str, place: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{place}: `{field}` must be a list with something in it")
    return list(value)


def _text(value: Any, field: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: each of `{field}` must be a text")
    return value


def _fact(value: Any, place: str) -> Fact:
    """A fact: a text, or a list of texts of which one is enough."""
    ways = value if isinstance(value, list) and value else [value]
    texts = tuple(_text(way, "facts", place) for way in ways)
    for text in texts:
        if not fact_words(text):  # it would stand in every answer
            raise DataError(f"{place}: the fact {text!r} has no letter and no digit")
    return texts


def _index(value: Any, texts: list[str], place: str) -> int:
    """The right answer's index: an index from 0, the answer's text, or its letter."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    if isinstance(value, str) and value in texts:
        return texts.index(value)
    if isinstance(value, str) and len(value) == 1 and value in LETTERS[: len(texts)]:
        return LETTERS.index(value)
    last = len(texts) - 1
    raise DataError(
        f"{place}: `answer` is {value!r}; it must be an index from 0 to {last}, a letter from A to "
        f"{LETTERS[min(last, 25)]}, or one of the choices"
    )


def _place(name: str) -> dict[str, Any]:
    file, _, row = name.rpartition(":")
    return {"source": file, "row": int(row)}
