"""turns: GritLM's conversations, a list of texts that alternate between user and assistant."""

from __future__ import annotations

from tailor.encode.content import refuse_placeholder
from tailor.encode.fields import are_texts, to_chat, to_list, to_system, to_text
from tailor.encode.formats.base import SYSTEM, TOOLS, Format, Row, own_columns
from tailor.encode.records import Record, RowError
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    texts = [to_text(text, "text") for text in to_list(row["text"], "text")]
    if not texts:
        raise RowError("empty", "the conversation is empty")
    if len(texts) % 2:
        raise RowError(
            "no_answer", f"`text` has {len(texts)} turns, an odd number, so the last one is the user's"
        )
    roles = ("user", "assistant")
    for text in texts[::2]:
        refuse_placeholder(text)
    turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return to_chat([*to_system(row), *turns], row.get("tools"))


TURNS = Format(
    "turns",
    EXAMPLES,
    fields={**own_columns("text"), **SYSTEM, **TOOLS},
    required=("text",),
    convert=_convert,
    form=lambda picked: are_texts(picked["text"]),
    is_chat=True,
)
