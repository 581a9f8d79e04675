"""The start that every chunk of a conversation repeats: BOS and the system turn, as the chat template writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from tailor.encode.records import Chat

_MARK = "\ue000"
"""The text of the first turn after the system messages: a private-use character that no template writes."""
_SYSTEM = ("system", "developer")


def system_turn(
    chat: Chat, text: str, ends: Sequence[str], render: Callable[[Sequence[Any], Any], str]
) -> str:
    """The start of `text`, a rendered conversation, before its first turn; empty if there is no system turn.

    It ends after the text that ends the message before the first turn, so it includes a system turn that the template
    writes by itself. A template without such a text (Gemma, Llama 2) writes the system message at the start of the user's
    turn: then everything before the user's own text belongs to it. ends: the texts that end messages.
    """
    first = next((at for at, one in enumerate(chat.messages) if one["role"] not in _SYSTEM), None)
    if first is None:
        return ""
    try:
        marked = render(
            [*chat.messages[:first], {"role": chat.messages[first]["role"], "content": _MARK}], chat.tools
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return ""
    before, found, _ = marked.partition(_MARK)
    if not found or not text.startswith(before):
        return ""
    stops = [before.rfind(end) + len(end) for end in ends if end in before]
    if not stops:
        return before if first else ""
    rest = before[max(stops) :]
    return before[: len(before) - len(rest.lstrip())]
