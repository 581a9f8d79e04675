"""turns: GritLM's conversations, a list of texts, the user's and the assistant's in turn."""

from __future__ import annotations

from tailor.encode.fields import are_texts, to_list, to_text
from tailor.encode.formats.base import Format, Row, own_columns
from tailor.encode.records import Chat, Record, RowError
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    texts = [to_text(text, "text") for text in to_list(row["text"], "text")]
    if not texts:
        raise RowError("empty", "the conversation is empty")
    if len(texts) % 2:
        raise RowError("no_answer", f"`text` has {len(texts)} turns, so the last one is the user's")
    roles = ("user", "assistant")
    return Chat([{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)])


TURNS = Format(
    "turns",
    EXAMPLES,
    fields=own_columns("text"),
    required=("text",),
    convert=_convert,
    form=lambda picked: are_texts(picked["text"]),
    is_chat=True,
)
