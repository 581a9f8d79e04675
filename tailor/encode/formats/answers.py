"""Helpers for the formats of preference data.

Every answer becomes a full conversation, or a prompt with its completion. Assistant turns of the prompt get weight 0, so
that the masks of supervised fine-tuning supervise exactly the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.fields import to_list, to_message, to_system, to_text
from tailor.encode.formats.base import Row
from tailor.encode.records import RowError

Messages = list[dict[str, Any]]


def conversation(row: Row, field: str) -> Messages:
    """The conversation that ends with the answer in `field`. The prompt is prepended unless the field already contains it."""
    value, prompt = row[field], row.get("prompt")
    turns = [
        to_message(entry) for entry in ([value] if isinstance(value, Mapping) else to_list(value, field))
    ]
    if isinstance(prompt, str):
        # If the field is a full conversation, the `prompt` column only repeats its first message.
        if not any(turn["role"] == "user" for turn in turns):
            turns = [{"role": "user", "content": prompt}, *turns]
    elif prompt is not None:
        before = [to_message(entry) for entry in to_list(prompt, "prompt")]
        turns = turns if turns[: len(before)] == before else before + turns
    return to_system(row) + turns


def unweighted(messages: Messages, count: int) -> Messages:
    """Give weight 0 to the assistant turns of the prompt, which is the first `count` messages."""
    return [
        {**turn, "weight": 0} if index < count and turn["role"] == "assistant" else turn
        for index, turn in enumerate(messages)
    ]


def check_answer(messages: Messages, shared: int, field: str) -> None:
    """RowError unless the conversation ends with an assistant turn after the first `shared` messages."""
    if len(messages) <= shared or messages[-1]["role"] != "assistant":
        raise RowError("no_answer", f"`{field}` does not end with an assistant turn after the prompt")


def nonempty(value: Any, field: str) -> str:
    """The text of an answer. RowError when it is empty."""
    answer = to_text(value, field)
    if not answer:
        raise RowError("empty", f"`{field}` is empty")
    return answer
