"""Prompts to generate from: a conversation up to the model's answer, rendered with its chat template; and answers as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from tailor.encode.reasoning import Reasoning
from tailor.encode.records import Chat, RowError
from tailor.encode.template_limits import TemplateLimits, limits_of
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import TemplateError

Message = dict[str, Any]
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode an incomplete UTF-8 character to."""
_TAIL = 8
"""Tokens of a prompt that decide how the next one is decoded; more than one character has."""


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None = None
) -> str:
    """The text of a conversation up to the model's answer, as in training. TemplateError when the template drops a part of it."""
    chat = Chat(list(messages), list(tools) if tools else None)
    both, reasoning = _fitting(tokenizer)
    limits = both[bool(chat.tools)]
    if (what := limits.dropped(chat)) is not None:
        raise TemplateError(
            f"chat template {tokenizer.require_template().name}: silently drops {what}, so the model would not see them",
            hint=f"leave out {what}, or train and generate with a template that renders them",
        )
    try:
        chat = limits.fitting(Chat(reasoning.apply(chat), chat.tools))
    except RowError as error:
        raise TemplateError(
            f"the conversation cannot be written: {error.detail}",
            hint="write each call as a turn of its own, with its result",
        ) from None
    return tokenizer.render(chat.messages, chat.tools, add_generation_prompt=True)


def answer_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of an answer, without BOS, EOS and padding. Other special tokens are part of it, such as those around a tool call.

    ids: without the stop token.
    """
    return tokenizer.decode(shown_ids(tokenizer, ids)).strip()


def continuation_text(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterable[int]) -> str:
    """The text by which an answer continues a plain prompt, with its spaces. Other than that as `answer_text`."""
    tail, known = before_continuation(tokenizer, prompt)
    return tokenizer.decode([*tail, *shown_ids(tokenizer, ids)])[len(known) :]


def before_continuation(tokenizer: Tokenizer, prompt: Sequence[int]) -> tuple[list[int], str]:
    """The last tokens of a prompt and their text, behind which a continuation is decoded.

    SentencePiece's decoders drop a space at the start of a text, and a prompt of token ids may end within a character.
    """
    tail = list(prompt[-_TAIL:])
    return tail, tokenizer.decode(tail).rstrip(UNFINISHED)


def shown_ids(tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    """The tokens that belong to the text of an answer: without BOS, EOS and padding."""
    ends = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return [token for token in ids if token not in ends]


@lru_cache(maxsize=8)
def _fitting(tokenizer: Tokenizer) -> tuple[tuple[TemplateLimits, TemplateLimits], Reasoning]:
    return limits_of(tokenizer), Reasoning(tokenizer.require_template(), drop=False)
