"""Replies of gpt-oss (Harmony): messages with a channel each. A message to a recipient calls a tool."""

from __future__ import annotations

import re

from tailor.encode.replies.reply import Reply, ToolCall, without_part_of

_START, _MESSAGE, _CHANNEL = "<|start|>", "<|message|>", "<|channel|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_MARKS = (_START, _MESSAGE, _CHANNEL, "<|constrain|>", *_ENDS)
_SPLIT = re.compile("(" + "|".join(map(re.escape, (_START, _MESSAGE, *_ENDS))) + ")")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_PEOPLE = ("all", "user", "assistant")


class Harmony:
    """Reasoning is in the channel analysis; the channels final and commentary (a preamble) are for the user."""

    mark = _CHANNEL

    def read(self, text: str, prompt: str, *, ended: bool, tools: bool) -> Reply:
        content, thoughts, calls = [], [], []
        for header, body, is_whole in _messages(text if ended else without_part_of(text, _MARKS)):
            channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
            if "<|" not in header and not body:
                # A text without a header, as of a model that does not know the form.
                content.append(header if is_whole or ended else "")
            elif recipient is not None and recipient[1] not in _PEOPLE:
                if is_whole or ended:
                    calls.append(ToolCall(recipient[1].removeprefix("functions."), body.strip()))
            elif channel is not None and channel[1] == "analysis":
                thoughts.append(body)
            else:
                content.append(body)
        joined = ("\n".join(part for part in parts if part.strip()).strip() for parts in (content, thoughts))
        return Reply(*joined, tuple(calls) if ended else ())


HARMONY = Harmony()


def _messages(text: str) -> list[tuple[str, str, bool]]:
    """(header, body, whether it has ended) of each message. The prompt has begun the header of the first one."""
    found: list[tuple[str, str, bool]] = []
    header, body = "", None
    for piece in _SPLIT.split(text):
        if piece in _ENDS:
            found.append((header, body or "", True))
            header, body = "", None
        elif piece == _START:
            if header.strip():
                found.append((header, body or "", True))
            header, body = piece, None
        elif piece == _MESSAGE:
            body = ""
        elif body is None:
            header += piece
        else:
            body += piece
    if header or body:
        found.append((header, body or "", False))
    return found
