"""The tokens and masks of conversations, found without tailor's code.

Tokens are those of transformers' `apply_chat_template`. An assistant's turn is found by its words: it begins after the
header of the role that precedes its content, and ends with the first end-of-turn token behind it. Markers, generation
prompts and differences between renderings, from which `tailor.encode.masks` works, are not used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from tailor.encode.masks import EncodedExample
from tests.encode.families import Family

Ids = tuple[int, ...]
Turn = tuple[Ids, Ids]
"""(tokens before an assistant's turn, tokens of the turn)."""


@dataclass(frozen=True)
class Talk:
    """One conversation of a row. learned: the indices of the turns to learn, by default every assistant turn."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    learned: tuple[int, ...] = ()
    is_positive: bool = True
    at: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        turns = tuple(at for at, one in enumerate(self.messages) if one["role"] == "assistant")
        object.__setattr__(self, "at", self.learned or turns)


class Refused(Exception):
    """The template refuses the conversation, or leaves a part of it out."""


class Reference:
    """transformers' tokenizer of a family, with its template."""

    def __init__(self, folder: str, family: Family, template: str) -> None:
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self._family, self._template = family, template

    def turns(self, talk: Talk) -> tuple[list[Turn], list[Ids]]:
        """The turns to learn, and the tokens of the conversation up to each of them."""
        texts = {at: self._text(talk.messages[: at + 1], talk.tools) for at in talk.at}
        for message in talk.messages[: talk.at[-1] + 1]:
            content = message["content"].strip()
            # Llama 3.1 writes results of tools as JSON strings.
            if not any(form in texts[talk.at[-1]] for form in (content, json.dumps(content))):
                raise Refused(message["role"])
        found = [self._turn(texts[at], talk.messages[at]) for at in talk.at]
        return found, [self._ids(talk.messages[: at + 1], talk.tools) for at in talk.at]

    def whole(self, talk: Talk) -> Ids:
        """The tokens of the whole conversation."""
        return self._ids(talk.messages, talk.tools)

    def plain(self, prompt: str, answer: str) -> Turn:
        """A prompt and its continuation without a template."""
        own = self._tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
        return tuple(self._tokenizer(prompt)["input_ids"]), (*own, self._tokenizer.eos_token_id)

    def embedded(self, head: str, text: str) -> Turn:
        """A text to embed behind its format, both with BOS, as GritLM's collator writes them."""
        bos = self._tokenizer.bos_token or ""
        parts = [self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in (bos + head, text)]
        return tuple(parts[0]), tuple(parts[1])

    def _text(self, messages: Sequence[Any], tools: Any) -> str:
        return str(self._apply(messages, tools, tokenize=False))

    def _ids(self, messages: Sequence[Any], tools: Any) -> Ids:
        return tuple(self._apply(messages, tools, tokenize=True, return_dict=False))

    def _apply(self, messages: Sequence[Any], tools: Any, **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self._template, **options
            )
        except TemplateError as error:
            raise Refused(str(error)) from None

    def _turn(self, text: str, message: dict[str, Any]) -> Turn:
        content = message["content"].strip() or message["tool_calls"][0]["function"]["name"]
        at = text.rindex(content)
        begin = max(text.rfind(header, 0, at) + len(header) for header in self._family.header)
        token = (message.get("tool_calls") and self._family.call_end) or self._family.end
        end = text.index(token, at + len(content)) + len(token)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        first = next(token for token, (start, _) in enumerate(offsets) if start >= begin)
        last = max(token for token, (_, stop) in enumerate(offsets) if stop <= end)
        assert offsets[first - 1][1] <= begin, "a token crosses the start of the turn"
        return tuple(ids[:first]), tuple(ids[first : last + 1])


def turns_of(examples: Sequence[EncodedExample]) -> list[Turn]:
    """What examples learn, in the same form."""
    found = []
    for example in examples:
        ids = example.input_ids.tolist()
        found += [(tuple(ids[:start]), tuple(ids[start:stop])) for start, stop in example.spans]
    return found


def disagreements(reference: Reference, talk: Talk, examples: Sequence[EncodedExample]) -> list[str]:
    """How the examples of a conversation differ from the reference; empty when they agree."""
    expected, prefixes = reference.turns(talk)
    problems = []
    if sorted(turns_of(examples)) != sorted(expected):
        problems.append("other turns are learned, or with other tokens before or in them")
    texts = {tuple(example.input_ids.tolist()) for example in examples}
    if not texts <= {*prefixes, reference.whole(talk)}:
        problems.append("the tokens are not those of apply_chat_template")
    if any(example.is_positive != talk.is_positive for example in examples):
        problems.append("the label differs")
    return problems
