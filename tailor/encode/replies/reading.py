"""What an answer says: its text, its reasoning and its tool calls, read in the form that the chat template has for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from tailor.encode.prompts import answer_text
from tailor.encode.replies import harmony, tags
from tailor.encode.replies.reply import Reply, ReplyFormat
from tailor.encode.tokenizer import Tokenizer

REPLY_FORMATS: tuple[ReplyFormat, ...] = (harmony.HARMONY, tags.TAGS)
"""The first one whose mark a template has is used. The last one is that of all other templates."""
_TAIL = 32
"""Tokens at the end of a prompt that the generation prompt may have."""


class ReplyReader:
    """Reads an answer as it grows. The parts that it returns, joined, are the reply to the whole text."""

    def __init__(self, fmt: ReplyFormat, prompt: str, *, tools: bool) -> None:
        """prompt: the end of the prompt's text. tools: whether tools can be called."""
        self._format, self._prompt, self._tools = fmt, prompt, tools
        self._text, self._content, self._reasoning = "", 0, 0

    def take(self, text: str, *, ended: bool = False) -> Reply:
        """What is new after more text. Tool calls come at the end."""
        self._text += text
        reply = self._format.read(self._text, self._prompt, ended=ended, tools=self._tools)
        new = Reply(reply.content[self._content :], reply.reasoning[self._reasoning :], reply.calls * ended)
        self._content, self._reasoning = len(reply.content), len(reply.reasoning)
        return new


def reader(tokenizer: Tokenizer, prompt: Sequence[int], *, tools: bool = False) -> ReplyReader:
    """The reader of an answer to a prompt that a chat template wrote."""
    return ReplyReader(_format_of(tokenizer), tokenizer.decode(prompt[-_TAIL:]), tools=tools)


def read(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterable[int], *, tools: bool = False) -> Reply:
    """The reply of a whole answer, without its stop token. Without a chat template, all of it is text."""
    text = answer_text(tokenizer, ids)
    if tokenizer.template is None:
        return Reply(text)
    return reader(tokenizer, prompt, tools=tools).take(text, ended=True)


@lru_cache(maxsize=8)
def _format_of(tokenizer: Tokenizer) -> ReplyFormat:
    template = tokenizer.require_template()
    return next(one for one in REPLY_FORMATS if one.mark in template.text)
