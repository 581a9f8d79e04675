"""Supervision masks: which tokens of a conversation contribute to the loss.

A turn is supervised from the end of the generation prompt up to and including its first end-of-turn
token, which is exactly what the model has to generate. If the template has `{% generation %}` markers,
the character ranges come from them. Otherwise the conversation is rendered with and without the turn,
and the difference is the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2
import numpy as np

from tailor.data.split import Missing
from tailor.encode import control_text, learned_turns, reasoning
from tailor.encode.reasoning import Reasoning
from tailor.encode.records import Chat, RowError
from tailor.encode.system_turn import system_turn
from tailor.encode.template import render, render_marked
from tailor.encode.token_boundaries import Tokens
from tailor.encode.token_positions import Positions
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.turns import TurnRules

Span = tuple[int, int]
WHOLE = Missing(0)


@dataclass(frozen=True)
class EncodedExample:
    """One example. input_ids: int32 [T]; spans: half-open ranges of supervised tokens.

    position: the index in a group of examples that belong together, from 0. is_positive: False for a rejected or
    undesirable answer, and for a passage that is irrelevant to its query. missing: tokens of the row that were cut away.
    head: number of first tokens with which every chunk starts: the tokenizer's prefix (BOS), and a system turn. score: that
    of a teacher for a passage, NaN without one.
    """

    input_ids: np.ndarray
    spans: list[Span]
    position: int = 0
    is_positive: bool = True
    missing: Missing = WHOLE
    head: int = 0
    score: float = math.nan

    def part(self, start: int, stop: int, spans: list[Span], head: int = 0) -> EncodedExample:
        """Its first `head` tokens and its tokens [start, stop), with other spans."""
        missing = self.missing
        if start > 0:
            missing |= Missing.START
        if stop < len(self.input_ids):
            missing |= Missing.END
        ids = self.input_ids[start:stop]
        if head:
            ids = np.concatenate([self.input_ids[:head], ids])
        return replace(self, input_ids=ids, spans=spans, missing=missing)


@dataclass
class Layout:
    """A rendered conversation: its text and the character ranges to supervise."""

    text: str
    ranges: list[Span] = field(default_factory=list)


class ChatEncoder:
    """Encodes conversations. train_on: `assistant`, `last_assistant` or `everything`, as in the recipe.

    chunk_length: longer conversations will be cut into chunks, so their `head` is found.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rules: TurnRules,
        train_on: str,
        *,
        drop_reasoning: bool = False,
        chunk_length: int | None = None,
    ) -> None:
        self._chunk_length = chunk_length
        self._tokenizer = tokenizer
        self._rules = rules
        self._train_on = train_on
        self._reasoning = Reasoning(tokenizer.require_template(), drop=drop_reasoning)

    def __call__(self, chats: Sequence[Chat]) -> list[list[EncodedExample] | RowError]:
        """The examples of each conversation: one, or several where the template rewrites earlier turns."""
        layouts = [_layouts_or_error(self._layouts, chat) for chat in chats]
        texts = [layout.text for group in layouts if not isinstance(group, RowError) for layout in group]
        encoded = iter(self._tokenizer.encode_with_positions(texts))
        results: list[list[EncodedExample] | RowError] = []
        for chat, group in zip(chats, layouts, strict=True):
            if isinstance(group, RowError):
                results.append(group)
                continue
            pairs = [(layout, next(encoded)) for layout in group]
            try:
                results.append([self._tokens(chat, layout, positions) for layout, positions in pairs])
            except RowError as error:
                results.append(error)
        return results

    def _layouts(self, chat: Chat) -> list[Layout]:
        limits = self._rules.limits[bool(chat.tools)]
        if (what := limits.dropped(chat)) is not None:
            raise RowError("template", f"the chat template silently drops {what}")
        control_text.check(chat, self._rules.controls)
        chat = limits.fitting(Chat(self._reasoning.apply(chat), chat.tools))
        turns = [at for at, message in enumerate(chat.messages) if message["role"] == "assistant"]
        supervised = learned_turns.learned(chat, turns, self._train_on)
        if self._train_on == "everything":
            return [self._everything(chat, turns, supervised)]
        if not supervised:
            return [Layout(self._render(chat.messages, chat.tools))]
        if self._rules.markers:
            marked = self._marked(chat, turns, supervised)
            # A template may drop the reasoning of earlier turns: each is then rendered as the last one.
            texts = [marked.text[start:stop] for start, stop in marked.ranges]
            if reasoning.are_kept([chat.messages[turn] for turn in supervised], texts):
                return [marked]
        return self._by_prefix(chat, supervised)

    def _everything(self, chat: Chat, turns: list[int], supervised: list[int]) -> Layout:
        """The whole text without the turns that are marked as not to be learned."""
        text = self._render(chat.messages, chat.tools)
        for turn in supervised:
            reasoning.check_kept(chat.messages[turn], text)
        excluded = learned_turns.unlearned(chat, turns)
        if not excluded:
            return Layout(text, [(0, -1)])
        marked = self._rules.markers
        layouts = [self._marked(chat, turns, excluded)] if marked else self._by_prefix(chat, excluded)
        if [layout.text for layout in layouts] != [text]:
            raise RowError(
                "template", "the chat template rewrites a turn that is marked as not to be learned"
            )
        return Layout(text, learned_turns.complement(layouts[0].ranges, len(text)))

    def _marked(self, chat: Chat, turns: list[int], supervised: list[int]) -> Layout:
        tokenizer = self._tokenizer
        text, ranges = render_marked(
            tokenizer.require_template(), chat.messages, chat.tools, tokenizer.specials
        )
        if len(ranges) != len(turns):
            raise RowError(
                "template",
                f"the template has {len(ranges)} {{% generation %}} ranges for {len(turns)} assistant messages",
            )
        chosen = [range_ for turn, range_ in zip(turns, ranges, strict=True) if turn in supervised]
        return Layout(text, [(start, self._rules.end(text, start, stop)) for start, stop in chosen])

    def _by_prefix(self, chat: Chat, supervised: list[int]) -> list[Layout]:
        """Layouts that together supervise each chosen turn once, in the same context as at generation.

        A template may rewrite earlier turns when later ones follow; Qwen 3, for instance, drops their reasoning.
        A turn whose rendering is not a prefix of the whole text gets an example of its own.
        """
        whole = self._render(chat.messages, chat.tools)
        remaining: dict[int, tuple[str, Span]] = {}
        for turn in supervised:
            prompt = self._render(chat.messages[:turn], chat.tools, add_generation_prompt=True)
            is_last = turn + 1 == len(chat.messages)
            text = whole if is_last else self._render(chat.messages[: turn + 1], chat.tools)
            if not text.startswith(prompt):
                after = self._opened if self._rules.opening else self._after_reasoning
                text = after(chat, turn, prompt)
            if not text.startswith(prompt):
                raise RowError("template", "the answer does not start where the generation prompt ends")
            reasoning.check_kept(chat.messages[turn], text[len(prompt) :])
            remaining[turn] = (text, (len(prompt), self._rules.end(text, len(prompt), len(text))))
        layouts, text = [], whole
        while remaining:
            fitting = [turn for turn, (own, (_, stop)) in remaining.items() if text.startswith(own[:stop])]
            if fitting:
                layouts.append(Layout(text, [remaining.pop(turn)[1] for turn in fitting]))
            if remaining:
                text = remaining[max(remaining)][0]
        return layouts

    def _opened(self, chat: Chat, turn: int, prompt: str) -> str:
        """The text up to a turn where the generation prompt opens `<think>`: the turn closes it after its reasoning."""
        thoughts, _ = reasoning.parts(chat.messages[turn])
        bare = reasoning.without(chat.messages[turn])
        text = self._render([*chat.messages[:turn], bare], chat.tools)
        begin = len(prompt) - len(self._rules.opening)
        return prompt + reasoning.close(thoughts) + text[begin:] if text.startswith(prompt[:begin]) else text

    def _after_reasoning(self, chat: Chat, turn: int, prompt: str) -> str:
        """The text up to a turn with which the history loses reasoning that the generation prompt still has.

        gpt-oss's does, when the answer to the result of a tool comes. Its own template takes text beside a call as reasoning.
        """
        history = [
            reasoning.without({**message, "content": ""} if message.get("tool_calls") else message)
            if message["role"] == "assistant"
            else message
            for message in chat.messages[:turn]
        ]
        bare = self._render(history, chat.tools, add_generation_prompt=True)
        text = self._render([*history, chat.messages[turn]], chat.tools)
        return prompt + text[len(bare) :] if text.startswith(bare) else text

    def _render(self, messages: Sequence[Any], tools: Any, *, add_generation_prompt: bool = False) -> str:
        tokenizer = self._tokenizer
        return render(
            tokenizer.require_template(),
            messages,
            tools,
            tokenizer.specials,
            add_generation_prompt=add_generation_prompt,
        )

    def _tokens(self, chat: Chat, layout: Layout, positions: Positions) -> EncodedExample:
        starts = [start for start, _ in layout.ranges if start]
        tokens = Tokens(self._tokenizer, layout.text, positions, starts)
        ids, tokenizer = tokens.ids, self._tokenizer
        if tokenizer.bos_id is not None and list(ids[:2]) == [tokenizer.bos_id] * 2:
            raise RowError("double_bos", "the text starts with two BOS tokens")
        head = self._head(chat, layout.text, tokens) if self._is_chunked(ids) else 0
        if layout.ranges == [(0, -1)]:
            return EncodedExample(ids, [(0, len(ids))], head=head)
        spans = [(tokens.at(start), tokens.at(stop)) for start, stop in layout.ranges]
        if self._train_on == "everything":
            return EncodedExample(ids, [span for span in spans if span[0] < span[1]], head=head)
        for start, stop in spans:
            if stop <= start or int(ids[stop - 1]) not in self._rules.end_ids:
                raise RowError(
                    "no_end_of_turn",
                    f"an assistant turn has no end-of-turn token: {tokenizer.decode(ids[start:stop])[-60:]!r}",
                )
        return EncodedExample(ids, spans, head=head)

    def _is_chunked(self, ids: np.ndarray) -> bool:
        return self._chunk_length is not None and len(ids) > self._chunk_length

    def _head(self, chat: Chat, text: str, tokens: Tokens) -> int:
        """Number of tokens of BOS and the system turn."""
        turn = system_turn(chat, text, self._rules.borders, self._render)
        return tokens.at(len(turn)) if turn else prefix_of(tokens.ids, self._tokenizer)


def prefix_of(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Number of first tokens that are the tokenizer's prefix, or a BOS that the chat template writes."""
    prefix = tokenizer.prefix
    if prefix and ids[: len(prefix)].tolist() == prefix:
        return len(prefix)
    return int(len(ids) > 0 and tokenizer.bos_id is not None and int(ids[0]) == tokenizer.bos_id)


def _layouts_or_error(layouts: Callable[[Chat], list[Layout]], chat: Chat) -> list[Layout] | RowError:
    """The layouts of a conversation, or the reason why its row is left out."""
    try:
        return layouts(chat)
    except RowError as error:
        return error
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        # Templates are programs: unexpected messages raise many kinds of errors.
        return RowError("template", f"the chat template rejects the row: {error}")
