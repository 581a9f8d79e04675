"""Rows that a task brings of its own: question sets and texts, read and checked row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tailor.encode.formats.messages import MESSAGES
from tailor.encode.readers import Reader
from tailor.encode.records import Chat, RowError
from tailor.encode.sources import find_files
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate.rows import Ids, Question
from tailor.spec.tasks.rows import Questions, Texts


def read_rows(
    data: Questions | Texts, where: str, fields: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
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


def questions_of(
    data: Questions, where: str, tokenizer: Tokenizer, fields: Sequence[str], *, plain: bool
) -> Iterator[tuple[Question, dict[str, Any], str]]:
    """(the question with its prompt, the row's `fields`, file:row) of each row. `plain`: without a chat template."""
    for place, row in read_rows(data, where, ("question", *fields)):
        ids, text, rendered = prompt_of(conversation(row["question"], place), tokenizer, plain, place)
        yield Question(location(place), ids, text, rendered), row, place


def texts(data: Texts, where: str) -> Iterator[tuple[str, str]]:
    """(file:row, text) of each row."""
    for place, row in read_rows(data, where, ("text",)):
        yield place, text_of(row["text"], "text", place)


def conversation(value: Any, place: str) -> list[dict[str, Any]]:
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


def prompt_of(
    turns: list[dict[str, Any]], tokenizer: Tokenizer, plain: bool, place: str
) -> tuple[Ids, str, str]:
    """Token ids, the last turn's text, and what the model sees as text."""
    if plain:
        text = plain_text(turns, place)
        return tokenizer.encode_prompt(text), text, text
    rendered = tokenizer.render(turns, None, add_generation_prompt=True)
    return tokenizer.encode(rendered), last_turn(turns), rendered


def plain_text(turns: list[dict[str, Any]], place: str) -> str:
    if len(turns) > 1:
        raise DataError(
            f"{place}: a conversation needs a chat template, which this model was trained without",
            hint="give the question as a text",
        )
    return str(turns[0]["content"])


def last_turn(turns: list[dict[str, Any]]) -> str:
    return str(turns[-1].get("content", ""))


def list_of(value: Any, field: str, place: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{place}: `{field}` must be a list with something in it")
    return list(value)


def text_of(value: Any, field: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: each of `{field}` must be a text")
    return value


def location(name: str) -> dict[str, Any]:
    file, _, row = name.rpartition(":")
    return {"source": file, "row": int(row)}
