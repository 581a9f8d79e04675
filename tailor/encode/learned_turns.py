"""Which assistant turns of a conversation are learned."""

from __future__ import annotations

from collections.abc import Sequence

from tailor.encode.content import REASONING_KEYS
from tailor.encode.records import Chat, RowError

Span = tuple[int, int]


def unlearned(chat: Chat, turns: Sequence[int]) -> list[int]:
    """The turns whose weight is 0."""
    return [turn for turn in turns if not chat.messages[turn].get("weight", 1)]


def learned(chat: Chat, turns: Sequence[int], train_on: str) -> list[int]:
    """The assistant's turns that `train_on` chooses and that answer a question. RowError for an empty answer."""
    if train_on == "everything":
        chosen = list(turns)
    else:
        # An answer before the first question answers nothing.
        asked = next((at for at, turn in enumerate(chat.messages) if turn["role"] == "user"), -1)
        chosen = [turn for turn in (turns[-1:] if train_on == "last_assistant" else turns) if turn > asked]
    chosen = [turn for turn in chosen if chat.messages[turn].get("weight", 1)]
    for turn in chosen:
        message = chat.messages[turn]
        is_empty = not message["content"].strip() and "tool_calls" not in message
        if is_empty and not any(message.get(key) for key in REASONING_KEYS):
            raise RowError("empty_answer", f"message {turn + 1} is an empty answer")
    return chosen


def complement(ranges: Sequence[Span], length: int) -> list[Span]:
    """The ranges of [0, length) that some ranges leave, without empty ones."""
    borders = [0, *(border for span in sorted(ranges) for border in span), length]
    return [span for span in zip(borders[::2], borders[1::2], strict=True) if span[0] < span[1]]
