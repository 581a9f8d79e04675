"""Replies of gpt-oss (Harmony): messages with a channel each. A message to a recipient calls a tool."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tailor.encode.replies.reply import Reply, ToolCall, json_object, without_part_of

_MESSAGE, _CHANNEL = "<|message|>", "<|channel|>"
_STARTS = tuple(
    f"<|start|>{role}" for role in ("assistant", "user", "system", "developer", "tool", "functions.")
)
"""A mark without a role is text. The assistant's is the first one."""
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_MARKS = (*_STARTS, _MESSAGE, _CHANNEL, "<|constrain|>", *_ENDS)
_SPLIT = re.compile("(" + "|".join(map(re.escape, (*_STARTS, _MESSAGE, *_ENDS))) + ")")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_IS_HEADER = re.compile(r"\s*to=|.*<\|", re.DOTALL)
_BEGUN = re.compile(r"<\|start\|>assistant((?:<\|channel\|>\w+)?(?:<\|message\|>)?)\Z")
_PEOPLE = ("all", "user", "assistant")


class Harmony:
    """Reasoning is in the channel analysis; the channels final and commentary (a preamble) are for the user."""

    mark = _CHANNEL

    def read(self, text: str, prompt: str, *, ended: bool, tools: bool) -> Reply:
        content, thoughts, calls = [], [], []
        begun = _BEGUN.search(prompt)
        answer = (begun[1] if begun else "") + (text if ended else without_part_of(text, _MARKS))
        for header, body, is_whole in _messages(answer):
            if header.startswith(_STARTS[1:]):
                break  # the model writes what others say
            channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
            if body is None:
                # A text without a header, as of a model that does not know the form.
                content.append(header if (is_whole or ended) and not _IS_HEADER.match(header) else "")
            elif recipient is not None and recipient[1] not in _PEOPLE:
                if not (is_whole or ended):
                    continue
                call = _call(recipient[1], body.strip())
                if call is not None and tools:
                    calls.append(call)
                else:
                    content.append(body if call is None else call.text)
            elif channel is not None and channel[1] == "analysis":
                thoughts.append(body)
            else:
                content.append(body)
        return Reply(_joined(content), _joined(thoughts), tuple(calls) if ended else ())


HARMONY = Harmony()


def _joined(bodies: list[str]) -> str:
    return "\n".join(body for body in bodies if body.strip()).strip()


def _call(recipient: str, arguments: str) -> ToolCall | None:
    """The call of a tool. None for a function's arguments that are no JSON object, as when the answer was cut."""
    name = recipient.removeprefix("functions.")
    if not name or (name != recipient and json_object(arguments) is None):
        return None
    return ToolCall(name, arguments)


def _messages(text: str) -> Iterator[tuple[str, str | None, bool]]:
    """(header, body, whether it has ended) of each message; no body without `<|message|>`. The prompt has the first `<|start|>`."""
    header, body = "", None
    for piece in _SPLIT.split(text):
        if piece in _ENDS:
            yield header, body, True
            header, body = "", None
        elif piece in _STARTS:
            if header.strip() or body is not None:
                yield header, body, True
            header, body = piece, None
        elif piece == _MESSAGE and body is None:
            body = ""
        elif body is None:
            header += piece
        else:
            body += piece
    if header or body is not None:
        yield header, body, False
