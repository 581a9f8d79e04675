"""How a chat template ends a turn, found by rendering a small conversation before any row is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from tailor.encode import reasoning
from tailor.encode.control_text import control_texts
from tailor.encode.template import builtin_templates, load_template, render, render_marked
from tailor.encode.template_limits import ANSWER, QUESTION, TemplateLimits, end_of_call, limits_of
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import TemplateError

_ANSWERS = (ANSWER["content"], "Nine then.")
_PROBE: list[dict[str, Any]] = [
    QUESTION,
    ANSWER,
    {"role": "user", "content": "And three times three?"},
    {"role": "assistant", "content": _ANSWERS[1]},
]
_OTHER = "set data.template to a built-in template or to a file"
_MARKERS = "move the end-of-turn token inside {% generation %} … {% endgeneration %} of the template"


@dataclass(frozen=True)
class TurnRules:
    """Properties of a chat template.

    markers: whether ranges come from the template's `{% generation %}` markers. end_ids, end_texts: the tokens that end
    an assistant turn. limits: what the template cannot write, for conversations (without, with) tools.
    """

    markers: bool
    end_ids: tuple[int, ...]
    end_texts: tuple[str, ...]
    limits: tuple[TemplateLimits, TemplateLimits]
    controls: tuple[str, ...] = ()
    """Texts that the content of a message must not have."""
    opening: str = ""
    """What the generation prompt opens and the text of a turn lacks, such as `<think>`."""
    borders: tuple[str, ...] = ()
    """The texts that end messages: `end_texts`, and what ends an answer once others follow, as gpt-oss's `<|end|>`."""

    def end(self, text: str, start: int, stop: int) -> int:
        """The end of the turn that starts at `start`: after its first end-of-turn token, else after its last visible character."""
        ends = [at + len(end) for end in self.end_texts if (at := text.find(end, start, stop)) >= 0]
        return min(ends) if ends else start + len(text[start:stop].rstrip())


def turn_rules(tokenizer: Tokenizer) -> TurnRules:
    """The rules of the tokenizer's chat template. TemplateError for a template that cannot be used for training."""
    template = tokenizer.require_template()
    try:
        text, ranges, markers, opened = _ranges(tokenizer)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"chat template {template.name}: line {error.lineno}: not valid Jinja: {error.message}",
            hint=_OTHER if template.name == "model" else "fix this line",
        ) from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise TemplateError(
            f"chat template {template.name}: rendering a plain conversation fails: {error}",
            hint=_OTHER,
        ) from None
    ids = tokenizer.encode(text)
    if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
        raise TemplateError(
            f"chat template {template.name}: the text starts with two BOS tokens",
            hint="remove bos_token from the template, or choose another with data.template",
        )
    ends = [
        _end(tokenizer, rendered[start:stop], rendered[stop:], answer, markers)
        for (rendered, start, stop), answer in zip(ranges, _ANSWERS, strict=True)
    ]
    if tokenizer.template is not None and tokenizer.template.tool_use:
        # The tool-use template may end turns differently, so markers are used only if both templates have them.
        markers = markers and tokenizer.template.has_markers
    ends += _end_of_call(tokenizer, [end for _, end in ends])
    end_ids, end_texts = zip(*ends, strict=True)
    end_texts = tuple(sorted(set(end_texts)))
    controls = control_texts(tokenizer, text, end_texts)
    _, earlier = _end(tokenizer, text[text.index(_ANSWERS[0]) :], "", _ANSWERS[0], markers)
    return TurnRules(
        markers,
        tuple(sorted(set(end_ids))),
        end_texts,
        limits_of(tokenizer),
        controls,
        opened,
        tuple(sorted({*end_texts, earlier})),
    )


def _ranges(tokenizer: Tokenizer) -> tuple[str, list[tuple[str, int, int]], bool, str]:
    """The rendered probe; (text, start, stop) of each assistant turn; whether these ranges come from markers;
    what the generation prompt opens (`TurnRules.opening`)."""
    template = tokenizer.require_template()
    whole = _render(tokenizer, _PROBE)
    if not any(answer in whole for answer in _ANSWERS):
        raise TemplateError(
            f"chat template {template.name}: the text of assistant messages is missing from the result",
            hint="render message.content of messages with role assistant, or choose another with data.template",
        )
    prompts = [_render(tokenizer, _PROBE[:turn], add_generation_prompt=True) for turn in (1, 3)]
    if template.has_markers:
        text, marked = render_marked(template, _PROBE, None, tokenizer.specials, probe=True)
        if len(marked) != len(_ANSWERS):
            raise TemplateError(
                f"chat template {template.name}: the {{% generation %}} markers enclose {len(marked)} of 2 assistant turns",
                hint="enclose each assistant turn in one pair of markers",
            )
        if all(text.startswith(prompt) for prompt in prompts):
            for (start, _), prompt in zip(marked, prompts, strict=True):
                if start < len(prompt):
                    raise TemplateError(
                        f"chat template {template.name}: {{% generation %}} starts before the answer: "
                        f"it includes {text[start : len(prompt)]!r} of the generation prompt",
                        hint="move {% generation %} to the end of the generation prompt",
                    )
            return text, [(text, start, stop) for start, stop in marked], True, ""
    ranges, opened = [], ""
    for turn, prompt in zip((1, 3), prompts, strict=True):
        text = _render(tokenizer, _PROBE[: turn + 1])
        if opened := reasoning.opening(prompt, text):
            text = prompt + reasoning.close("") + text[len(prompt) - len(opened) :]
        lead = text[len(prompt) :].split(_ANSWERS[turn // 2])[0]
        if not text.startswith(prompt):
            raise TemplateError(
                f"chat template {template.name}: an answer does not start where the generation prompt ends "
                f"({_tail(prompt)!r}), so the model would learn to continue another prompt than at inference",
                hint="make the generation prompt equal the start of an assistant turn, or choose another with data.template",
            )
        if lead.strip() and prompt == _render(tokenizer, _PROBE[:turn]):
            raise TemplateError(
                f"chat template {template.name}: there is no generation prompt, so an answer would start with {lead!r}",
                hint="render the header of the assistant turn when add_generation_prompt is true",
            )
        ranges.append((text, len(prompt), len(text)))
    return whole, ranges, False, opened


def _end(tokenizer: Tokenizer, supervised: str, after: str, answer: str, markers: bool) -> tuple[int, str]:
    """Id and text of the end-of-turn token: the first special token after the answer."""
    name = tokenizer.require_template().name
    if answer not in supervised:
        raise TemplateError(
            f"chat template {name}: the assistant turn {supervised!r} does not contain the message's content",
            hint="render message.content unchanged, or choose another template with data.template",
        )
    tail = supervised[supervised.index(answer) + len(answer) :]
    found = tokenizer.encode_with_positions([tail])[0]
    for at, token in enumerate(found.ids.tolist()):
        if _ends_turns(tokenizer, token):
            return token, tail[found.start(at) : found.end(at)].strip()
    hint = None
    if markers and _has_special(tokenizer, after):
        hint = _MARKERS
    elif usable := _names(tokenizer):
        hint = f"use a template whose end-of-turn token this tokenizer has: data.template: {usable}"
    ending = (
        f"ends with `{tail.strip()}`, which is not a single token of this tokenizer"
        if tail.strip()
        else "has no end-of-turn token"
    )
    raise TemplateError(
        f"chat template {name}: an assistant turn {ending}; the model would never learn to stop",
        hint=hint,
    )


def _end_of_call(tokenizer: Tokenizer, ends: Sequence[str]) -> list[tuple[int, str]]:
    """Id and text of the special token that ends a turn with a tool call, if it is another one, as gpt-oss's `<|call|>`."""
    end = end_of_call(tokenizer)
    return [] if end is None or any(one in end[2] for one in ends) else [end[:2]]


def _names(tokenizer: Tokenizer) -> str:
    """The built-in templates whose end-of-turn token is in the vocabulary."""
    names = [name for name in builtin_templates() if name != tokenizer.require_template().name]
    return ", ".join(name for name in names if _ends_with_known(tokenizer, name))


def _ends_with_known(tokenizer: Tokenizer, name: str) -> bool:
    other = tokenizer.with_template(load_template(name))
    tail = _render(other, _PROBE[:2]).split(_ANSWERS[0])[-1]
    return any(_ends_turns(other, token) for token in other.encode(tail))


def _ends_turns(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token may end turns. Some tokenizers (Gemma's) have newlines and tags among their added tokens."""
    if token == tokenizer.eos_id:
        return True
    return token in tokenizer.added and bool(tokenizer.added[token].content.strip())


def _has_special(tokenizer: Tokenizer, text: str) -> bool:
    ids = tokenizer.encode(text.lstrip()[:40])
    return bool(ids) and ids[0] in tokenizer.added


def _render(tokenizer: Tokenizer, messages: Sequence[Any], *, add_generation_prompt: bool = False) -> str:
    return render(
        tokenizer.require_template(),
        messages,
        None,
        tokenizer.specials,
        add_generation_prompt=add_generation_prompt,
        probe=True,
    )


def _tail(text: str) -> str:
    return text[-40:]
