"""completion_messages: TRL's conversational prompt and completion. Only the completion is learned."""

from __future__ import annotations

from tailor.encode.fields import to_chat
from tailor.encode.formats.answers import are_messages, check_answer, conversation, unweighted
from tailor.encode.formats.base import MESSAGE_KEYS, SYSTEM, TOOLS, Format, Row
from tailor.encode.records import Record
from tailor.spec.data import EXAMPLES


def _convert(row: Row) -> Record:
    messages, shared = conversation(row, "completion")
    check_answer(messages, shared, "completion")
    return to_chat(unweighted(messages, shared), row.get("tools"))


COMPLETION_MESSAGES = Format(
    "completion_messages",
    EXAMPLES,
    fields={"prompt": ("prompt",), "completion": ("completion", "response"), **SYSTEM, **TOOLS},
    required=("prompt", "completion"),
    convert=_convert,
    form=lambda picked: are_messages(picked["completion"], picked["prompt"]),
    is_chat=True,
    keys=MESSAGE_KEYS,
)
