"""The reasoning of assistant turns: kept where the chat template writes it, or removed.

A message holds its reasoning under `reasoning_content` (`tailor.encode.fields`), or in its content, before `</think>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tailor.encode.content import REASONING_KEYS
from tailor.encode.records import Answer, Chat, Pair, RowError
from tailor.encode.template import Template

DROPPED = "reasoning_dropped"
OPEN, CLOSE = "<think>", "</think>"
_KEY = REASONING_KEYS[0]
_OPENING = re.compile(rf"{OPEN}\s*$")

Message = dict[str, Any]


def parts(message: Message) -> tuple[str, str]:
    """The reasoning of an assistant's message, and the answer after it."""
    content = str(message["content"])
    before, close, after = content.partition(CLOSE)
    reasoning = str(message.get(_KEY) or "")
    if not close:
        return reasoning.strip(), content
    return (reasoning or before.rpartition(OPEN)[2]).strip(), after.lstrip("\n")


def without(message: Message) -> Message:
    """An assistant's message without its reasoning."""
    if _KEY not in message and CLOSE not in message["content"]:
        return message
    kept = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    return {**kept, "content": parts(message)[1]}


def _split(message: Message) -> Message:
    """An assistant's message with the reasoning of its content in a key."""
    if CLOSE not in message["content"]:
        return message
    reasoning, answer = parts(message)
    return {**message, _KEY: reasoning, "content": answer}


class Reasoning:
    """What `data.reasoning` makes of conversations with one template."""

    def __init__(self, template: Template, *, drop: bool) -> None:
        self._drop = drop
        texts = [text for text in (template.text, template.tool_use) if text is not None]
        self._key = {text: _read_by(text) or _KEY for text in texts}
        # Templates that write reasoning in other ways than as `<think>`, such as that of gpt-oss.
        self._untagged = {text for text in texts if _read_by(text) and CLOSE not in text}
        self._template = template

    def apply(self, chat: Chat) -> list[Message]:
        """The messages as the template gets them: without reasoning, or with it under the key that it reads."""
        messages = chat.messages
        if not any(_KEY in message or CLOSE in message["content"] for message in messages):
            return messages
        if self._drop:
            return [without(turn) if turn["role"] == "assistant" else turn for turn in messages]
        text = self._template.choose(chat.tools)
        if text in self._untagged:
            messages = [_split(turn) if turn["role"] == "assistant" else turn for turn in messages]
        key = self._key[text]
        return [{**turn, key: turn[_KEY]} if turn.get(_KEY) else turn for turn in messages]


def is_open(prompt: str) -> bool:
    """Whether a prompt ends with `<think>`, so that the answer begins with reasoning."""
    return _OPENING.search(prompt) is not None


def opening(prompt: str, text: str) -> str:
    """What a generation prompt opens and the turn's text lacks, such as `<think>` and a newline; empty for none."""
    found = _OPENING.search(prompt)
    is_so = found is not None and not text.startswith(prompt) and text.startswith(prompt[: found.start()])
    return prompt[found.start() :] if found is not None and is_so else ""


def close(reasoning: str) -> str:
    """The start of a turn where the generation prompt has opened `<think>` and a newline."""
    return f"{reasoning}\n{CLOSE}\n\n"


def check_kept(message: Message, text: str) -> None:
    """RowError unless the text of a turn has the reasoning of its message."""
    if not are_kept([message], [text]):
        raise RowError(
            DROPPED,
            "the chat template drops the reasoning; choose one that writes it, or set data.reasoning: drop",
        )


def are_kept(messages: Sequence[Message], texts: Sequence[str]) -> bool:
    """Whether the text of every turn has the reasoning of its message."""
    return all(
        _has_reasoning(message, text)
        for message, text in zip(messages, texts, strict=True)
        if message.get(_KEY) or CLOSE in message["content"]
    )


def _has_reasoning(message: Message, text: str) -> bool:
    """Whether a text has the reasoning beside the answer, which may have the same words."""
    reasoning, answer = (part.strip() for part in parts(message))
    before, _, after = text.rpartition(answer) if answer else (text, "", "")
    return reasoning in before or reasoning in after


def differ_only_in_reasoning(pair: Pair) -> bool:
    """Whether two answers are the same apart from reasoning and from spaces around the answers."""
    return _bare(pair.chosen) == _bare(pair.rejected)


def _bare(answer: Answer) -> Any:
    if not isinstance(answer, Chat):
        return answer
    bare = [without(turn) if turn["role"] == "assistant" else turn for turn in answer.messages]
    return [{**turn, "content": turn["content"].strip()} for turn in bare]


def _read_by(template: str) -> str | None:
    """The key of a message that a template reads reasoning from."""
    return next((key for key in REASONING_KEYS if _reads(template, key)), None)


def _reads(template: str, key: str) -> bool:
    return re.search(rf"[.'\"]{key}\b", template) is not None
