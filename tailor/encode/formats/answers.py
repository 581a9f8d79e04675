"""Helpers for the formats of preference data.

Every answer becomes a full conversation, or a prompt with its completion. Assistant turns of the prompt get weight 0, so
that the masks of supervised fine-tuning supervise exactly the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.encode.content import refuse_placeholder
from tailor.encode.fields import first_keys, to_list, to_message, to_text, with_system
from tailor.encode.formats.base import Row
from tailor.encode.records import RowError

Messages = list[dict[str, Any]]

EMPTY = "empty_answer"

_MEANT = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight")


def conversation(row: Row, field: str) -> tuple[Messages, int]:
    """The conversation that ends with an answer, and how many of its messages are the row's prompt.

    The prompt is put before the answer, unless it is there already. A whole conversation without a prompt in
    messages is counted as prompt up to its last message.
    """
    value, prompt = row[field], row.get("prompt")
    turns = [{"role": "assistant", "content": nonempty(value, field)}] if isinstance(value, str) else []
    if not turns:
        entries = [value] if isinstance(value, Mapping) else to_list(value, field)
        turns = [to_message(entry) for entry in entries]
    before: Messages = []
    if isinstance(prompt, str):
        # If the field is a full conversation, the `prompt` column only repeats one of its messages, or several.
        asked = [turn["content"] for turn in turns if turn["role"] == "user"]
        if not asked:
            refuse_placeholder(prompt)
            before = [{"role": "user", "content": prompt}]
        elif not any(text.strip() in prompt or prompt.strip() in text for text in asked):
            raise RowError("two_prompts", f"`prompt` has another text than the user's turns of `{field}`")
    elif prompt is not None:
        before = [to_message(entry) for entry in to_list(prompt, "prompt")]
        if before and turns and before[-1]["role"] == "assistant" and is_same(before[0], turns[0]):
            before = []  # the whole conversation with one of its answers
    joined = join(before, turns)
    messages = with_system(row, joined)
    given = len(before) + len(messages) - len(joined)
    return messages, given if before else max(len(messages) - 1, 0)


def join(prompt: Messages, turns: Messages) -> Messages:
    """The prompt and the turns after it, which may repeat it. RowError for turns with another prompt of their own."""
    if count_shared(prompt, turns) == len(prompt):
        return turns
    answered = any(turn["role"] == "assistant" for turn in turns)
    if answered and (turns[0]["role"] == "system" or turns[0]["role"] == "user" == prompt[-1]["role"]):
        raise RowError("two_prompts", "an answer begins with another prompt than the row's")
    return prompt + turns


def count_shared(one: Messages, other: Messages) -> int:
    """The number of messages at the start that both conversations share. An id or a time of a message makes no other one."""
    count = 0
    while count < min(len(one), len(other)) and is_same(one[count], other[count]):
        count += 1
    return count


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two messages say the same."""
    return all(one.get(key) == other.get(key) for key in _MEANT)


def unweighted(messages: Messages, count: int) -> Messages:
    """Give weight 0 to the assistant turns of the prompt, which is the first `count` messages."""
    return [
        {**turn, "weight": 0} if index < count and turn["role"] == "assistant" else turn
        for index, turn in enumerate(messages)
    ]


def are_messages(answer: Any, prompt: Any) -> bool:
    """Whether an answer is a message or messages, or a text behind a prompt of messages."""
    return first_keys(answer) >= {"role"} or (isinstance(answer, str) and first_keys(prompt) >= {"role"})


def check_answer(messages: Messages, shared: int, field: str) -> None:
    """RowError unless the conversation ends with an assistant turn after the first `shared` messages."""
    if len(messages) <= shared or messages[-1]["role"] != "assistant":
        raise RowError("no_answer", f"`{field}` does not end with an assistant turn after the prompt")


def nonempty(value: Any, field: str) -> str:
    """The text of an answer. RowError when it is empty."""
    answer = to_text(value, field)
    if not answer.strip():
        raise RowError(EMPTY, f"`{field}` is empty")
    return answer


def needs_template(other: str, **answers: str) -> dict[str, str]:
    """For a format without a chat template: columns that another format uses -> how to name that format."""
    columns = {"instruction": "prompt", **answers}
    shown = ", ".join(f"{field}: {column}" for field, column in columns.items())
    instead = f"remove the column, or use format {other} with columns {{{shown}}}"
    query = f"remove the column, or use format {other} with columns {{{shown}, input: query}}"
    return {
        **dict.fromkeys(
            ("system", "system_prompt", "system_message", "tools", "functions", "input", "history"), instead
        ),
        "query": query,
    }
