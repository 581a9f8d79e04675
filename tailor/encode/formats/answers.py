"""Answers to a prompt, shared by the formats of preference data.

Every answer becomes a whole conversation, or a prompt with its completion. The assistant's turns of the prompt
have weight 0, so that the rules of supervised fine-tuning supervise exactly the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.fields import to_list, to_message, to_system, to_text
from tailor.encode.formats.base import Row
from tailor.encode.records import RowError

Messages = list[dict[str, Any]]


def conversation(row: Row, field: str) -> Messages:
    """The conversation that ends with an answer: the prompt is put before it, unless it is there already."""
    value, prompt = row[field], row.get("prompt")
    turns = [
        to_message(entry) for entry in ([value] if isinstance(value, Mapping) else to_list(value, field))
    ]
    if isinstance(prompt, str):
        # A whole conversation repeats its prompt, which is then only a label of the row.
        if not any(turn["role"] == "user" for turn in turns):
            turns = [{"role": "user", "content": prompt}, *turns]
    elif prompt is not None:
        before = [to_message(entry) for entry in to_list(prompt, "prompt")]
        turns = turns if turns[: len(before)] == before else before + turns
    return to_system(row) + turns


def unweighted(messages: Messages, count: int) -> Messages:
    """The first `count` messages are the prompt: none of them is learned."""
    return [
        {**turn, "weight": 0} if at < count and turn["role"] == "assistant" else turn
        for at, turn in enumerate(messages)
    ]


def check_answer(messages: Messages, shared: int, field: str) -> None:
    """RowError unless the conversation ends with an assistant's turn after its first `shared` messages."""
    if len(messages) <= shared or messages[-1]["role"] != "assistant":
        raise RowError("no_answer", f"`{field}` does not end with an assistant's turn of its own")


def nonempty(value: Any, field: str) -> str:
    """The text of an answer."""
    answer = to_text(value, field)
    if not answer:
        raise RowError("empty", f"`{field}` is empty")
    return answer
