"""Rows of a task's own `data`: question sets and texts, read and checked row by row.

A row id is `file:row`, for error messages. A key is the recipe key of the data, such as `tasks[0].data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tailor.data.split import RowId
from tailor.encode.columns import near_column
from tailor.encode.formats.messages import MESSAGES
from tailor.encode.prompts import render_prompt
from tailor.encode.readers import Reader
from tailor.encode.records import Chat, RowError
from tailor.encode.sources import find_files
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError, TemplateError
from tailor.evaluate.rows import Ids, Question
from tailor.spec.tasks.rows import Questions, Texts


def read_rows(
    data: Questions | Texts, key: str, fields: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(row id, requested fields) of each row, up to `data.limit`. DataError for a row that lacks a field or cannot be read."""
    count = 0
    for part in find_files(data, key):
        for number, row in Reader(part):
            if count == data.limit:
                return
            row_id = f"{part.label}:{number}"
            if isinstance(row, RowError):
                raise DataError(f"{row_id}: {row.detail or row.reason}")
            if not isinstance(row, Mapping):
                raise DataError(f"{row_id}: a row must be an object")
            picked = {field: row.get(data.columns.get(field, field)) for field in fields}
            for field, value in picked.items():
                if value is None:
                    column = data.columns.get(field, field)
                    near = near_column(column, row) if column not in row else ""
                    raise DataError(
                        f"{row_id}: missing key `{column}`",
                        hint=f"{near} name the column in {key}.columns: {{{field}: …}}".strip(),
                    )
            count += 1
            yield row_id, picked
    if not count:
        raise DataError(f"{key} {data.path}: no rows")


def questions_of(
    data: Questions, key: str, tokenizer: Tokenizer, fields: Sequence[str], *, plain: bool
) -> Iterator[tuple[Question, dict[str, Any], str]]:
    """(question with its prompt, the row's `fields`, row id) of each row. plain: without a chat template."""
    for row_id, row in read_rows(data, key, ("question", *fields)):
        ids, text, rendered = prompt_of(conversation(row["question"], row_id), tokenizer, plain, row_id)
        yield Question(location_of(row_id), ids, text, rendered), row, row_id


def texts(data: Texts, key: str) -> Iterator[tuple[str, str]]:
    """(row id, text) of each row."""
    for row_id, row in read_rows(data, key, ("text",)):
        yield row_id, text_of(row["text"], "text", row_id)


def conversation(value: Any, row_id: str) -> list[dict[str, Any]]:
    """The messages of a question, which is a text or a list of messages that ends before the answer."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{row_id}: the question is empty")
        return [{"role": "user", "content": value}]
    try:
        record = MESSAGES.record({"messages": value}, {})
    except RowError as error:
        raise DataError(f"{row_id}: {error.detail or error.reason}") from None
    assert isinstance(record, Chat)
    if record.messages[-1]["role"] == "assistant":
        raise DataError(f"{row_id}: the messages of a question must not end with an assistant message")
    return record.messages


def prompt_of(
    turns: list[dict[str, Any]], tokenizer: Tokenizer, plain: bool, row_id: str
) -> tuple[Ids, str, str]:
    """(token ids, text of the last turn, rendered prompt) of a question."""
    if plain:
        text = plain_text(turns, row_id)
        return tokenizer.encode_prompt(text), text, text
    try:
        rendered = render_prompt(tokenizer, turns)
    except TemplateError as error:
        raise DataError(f"{row_id}: {error.message}", hint=error.hint) from None
    return tokenizer.encode(rendered), last_turn(turns), rendered


def plain_text(turns: list[dict[str, Any]], row_id: str) -> str:
    """The text of a question without a chat template. DataError for several turns."""
    if len(turns) > 1:
        raise DataError(
            f"{row_id}: the question is a conversation of {len(turns)} turns, but the model has no chat template",
            hint="give the question as one text",
        )
    return str(turns[0]["content"])


def last_turn(turns: list[dict[str, Any]]) -> str:
    return str(turns[-1].get("content", ""))


def list_of(value: Any, field: str, row_id: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{row_id}: `{field}` must be a non-empty list")
    return list(value)


def text_of(value: Any, field: str, row_id: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row_id}: `{field}` must be non-empty text")
    return value


def location_of(row_id: str) -> dict[str, Any]:
    """`source`, `file` and `row` of a row id. A task has one source."""
    file, _, row = row_id.rpartition(":")
    return RowId(0, file, int(row))._asdict()
