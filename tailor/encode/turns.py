"""How a template ends a turn, found out on a small conversation before any row is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from tailor.encode import reasoning
from tailor.encode.control_text import control_texts
from tailor.encode.template import builtin_templates, load_template, render, render_marked
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import TemplateError

_ANSWERS = ("Four it is.", "Nine then.")
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": _ANSWERS[0]},
    {"role": "user", "content": "And three times three?"},
    {"role": "assistant", "content": _ANSWERS[1]},
]
TOOLS, CALLS = "the tools", "tool calls"
_TOOL = {"type": "function", "function": {"name": "probe_tool", "description": "A tool.", "parameters": {}}}
_CALL = {"type": "function", "function": {"name": "probe_call", "arguments": {"at": 1}}}
_OTHER = "choose another with data.template, a built-in one or a file"
_MARKERS = "put the end-of-turn token inside the template's {% generation %} … {% endgeneration %}"


@dataclass(frozen=True)
class TurnRules:
    """What a template does.

    markers: ranges come from the template's own markers. end_ids, end_texts: what ends an assistant's
    turn. left_out: what the template silently leaves out of conversations without and with tools.
    """

    markers: bool
    end_ids: tuple[int, ...]
    end_texts: tuple[str, ...]
    left_out: tuple[tuple[str, ...], tuple[str, ...]]
    controls: tuple[str, ...] = ()
    """Texts that the content of a message must not have."""
    opening: str = ""
    """What the generation prompt opens and the text of a turn lacks, such as `<think>`."""

    def end(self, text: str, start: int, stop: int) -> int:
        """Where the turn that begins at `start` ends: after its first end-of-turn token, else at its last visible character."""
        found = [at + len(end) for end in self.end_texts if (at := text.find(end, start, stop)) >= 0]
        return min(found) if found else start + len(text[start:stop].rstrip())


def turn_rules(tokenizer: Tokenizer) -> TurnRules:
    """The rules of the tokenizer's template. TemplateError for a template that cannot be trained on."""
    template = tokenizer.require_template()
    try:
        text, ranges, markers, opened = _ranges(tokenizer)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"chat template {template.name}: line {error.lineno} is not valid Jinja: {error.message}",
            hint=_OTHER if template.name == "model" else "fix that line",
        ) from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise TemplateError(
            f"chat template {template.name}: it fails on a plain conversation: {error}",
            hint=_OTHER,
        ) from None
    ids = tokenizer.encode(text)
    if tokenizer.bos_id is not None and ids[:2] == [tokenizer.bos_id] * 2:
        raise TemplateError(
            f"chat template {template.name}: it begins with two BOS tokens", hint="remove one of them"
        )
    ends = [
        _end(tokenizer, own[start:stop], own[stop:], answer, markers)
        for (own, start, stop), answer in zip(ranges, _ANSWERS, strict=True)
    ]
    if tokenizer.template is not None and tokenizer.template.tool_use:
        # A second template for tools may end turns in its own way; only the marked ranges can be trusted there.
        markers = markers and tokenizer.template.has_markers
    end_ids, end_texts = zip(*ends, strict=True)
    left_out = (_left_out(tokenizer, None), _left_out(tokenizer, [_TOOL]))
    end_texts = tuple(sorted(set(end_texts)))
    controls = control_texts(tokenizer, text, end_texts)
    return TurnRules(markers, tuple(sorted(set(end_ids))), end_texts, left_out, controls, opened)


def _ranges(tokenizer: Tokenizer) -> tuple[str, list[tuple[str, int, int]], bool, str]:
    """The probe's text, per answer (text, start, stop) of what the assistant writes, and whether markers say so."""
    template = tokenizer.require_template()
    whole = _render(tokenizer, _PROBE)
    if not any(answer in whole for answer in _ANSWERS):
        raise TemplateError(
            f"chat template {template.name}: it never writes the assistant's text",
            hint="let it write message.content of the messages whose role is assistant",
        )
    prompts = [_render(tokenizer, _PROBE[:turn], add_generation_prompt=True) for turn in (1, 3)]
    if template.has_markers:
        text, marked = render_marked(template, _PROBE, None, tokenizer.specials)
        if len(marked) != len(_ANSWERS):
            raise TemplateError(
                f"chat template {template.name}: its {{% generation %}} markers hold {len(marked)} of 2 answers",
                hint="put each assistant turn into one pair of markers",
            )
        if all(text.startswith(prompt) for prompt in prompts):
            for (start, _), prompt in zip(marked, prompts, strict=True):
                if start < len(prompt):
                    raise TemplateError(
                        f"chat template {template.name}: {{% generation %}} begins before the answer, "
                        f"at {text[start : len(prompt)]!r} of the generation prompt",
                        hint="begin it where the generation prompt ends",
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
                f"chat template {template.name}: an answer does not begin where the generation prompt ends "
                f"({_tail(prompt)!r}), so the model would learn another text than it is asked to go on with",
                hint="choose another template with data.template, or one whose prompt fits these answers",
            )
        if lead.strip() and prompt == _render(tokenizer, _PROBE[:turn]):
            raise TemplateError(
                f"chat template {template.name}: it writes no generation prompt, so an answer would begin with {lead!r}",
                hint="let it write the assistant's header when add_generation_prompt is true",
            )
        ranges.append((text, len(prompt), len(text)))
    return whole, ranges, False, opened


def _end(tokenizer: Tokenizer, supervised: str, after: str, answer: str, markers: bool) -> tuple[int, str]:
    """Id and text of the token that ends the turn: the first special one after the answer."""
    name = tokenizer.require_template().name
    if answer not in supervised:
        raise TemplateError(
            f"chat template {name}: an assistant's text does not stand in what it writes for it ({supervised!r})"
        )
    tail = supervised[supervised.index(answer) + len(answer) :]
    encoding = tokenizer.encode_with_offsets([tail])[0]
    for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        if _ends_turns(tokenizer, token):
            return token, tail[start:stop].strip()
    hint = None
    if markers and _has_special(tokenizer, after):
        hint = _MARKERS
    elif usable := _names(tokenizer):
        hint = f"choose a template whose end of turn the tokenizer has: data.template: {usable}"
    wrote = (
        f"`{tail.strip()}`, which is no single token of this tokenizer"
        if tail.strip()
        else "no end-of-turn token"
    )
    raise TemplateError(
        f"chat template {name}: the supervised text of a turn ends with {wrote}; the model would never stop",
        hint=hint,
    )


def _left_out(tokenizer: Tokenizer, tools: list[Any] | None) -> tuple[str, ...]:
    """What the template leaves out without a word. What it refuses aloud, it refuses again for the row."""
    question, answer = _PROBE[:2]
    calling = [question, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
    probes = [
        (
            "system messages",
            "Probe the system.",
            [{"role": "system", "content": "Probe the system."}, question, answer],
        ),
        (TOOLS, "probe_tool", [question, answer]),
        (CALLS, "probe_call", calling),
        ("tool messages", "Probe result.", [*calling, {"role": "tool", "content": "Probe result."}, answer]),
    ]
    return tuple(
        what
        for what, mark, talk in probes
        if (tools or what != TOOLS) and mark not in _try(tokenizer, talk, tools, mark)
    )


def _try(tokenizer: Tokenizer, messages: Sequence[Any], tools: list[Any] | None, mark: str) -> str:
    try:
        return render(tokenizer.require_template(), messages, tools, tokenizer.specials)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return mark


def _names(tokenizer: Tokenizer) -> str:
    """Built-in templates whose end of turn the tokenizer knows."""
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
    )


def _tail(text: str) -> str:
    return text[-40:]
