"""Prompts to generate from: a conversation up to the model's answer, rendered with its chat template; and answers as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from tailor.encode.records import Chat
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.turns import contents, left_out_of
from tailor.errors import TemplateError

Message = dict[str, Any]


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None = None
) -> str:
    """The text of a conversation up to the model's answer. TemplateError when the template silently drops a part of it."""
    chat = Chat(list(messages), list(tools) if tools else None)
    for what in _left_out(tokenizer)[bool(chat.tools)]:
        if what in contents(chat):
            raise TemplateError(
                f"chat template {tokenizer.require_template().name}: silently drops {what}, so the model would not see them",
                hint=f"leave out {what}, or train and generate with a template that renders them",
            )
    return tokenizer.render(chat.messages, chat.tools, add_generation_prompt=True)


def answer_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of an answer, without BOS, EOS and padding. Other special tokens are part of it, such as those around a tool call.

    ids: without the stop token.
    """
    ends = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return tokenizer.decode(token for token in ids if token not in ends).strip()


@lru_cache(maxsize=8)
def _left_out(tokenizer: Tokenizer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return left_out_of(tokenizer)
