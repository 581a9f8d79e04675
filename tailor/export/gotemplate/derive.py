"""Makes a Go template from a chat template: from where it puts the texts of a conversation, not from how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tailor.encode.template import Message
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import TemplateError

_SYSTEM, _FIRST, _ANSWER, _SECOND = "Qsyszq", "Qonezq", "Qanszq", "Qtwozq"
"""Texts that no template has itself, and none changes."""

_NOT_EMPTY = "$.System"
_PRESENT = '(eq (index $.Messages 0).Role "system")'
SYSTEM_CONDITIONS = (_NOT_EMPTY, _PRESENT)
"""When a Go template writes the system message: if it has a text, or if there is one at all."""


@dataclass(frozen=True)
class _Parts:
    """What a chat template writes around texts. The user's turn begins after `first` or `next`, and ends before `after` (an
    answer that is given) or `end` (the one to generate)."""

    first: str
    next: str
    after: str
    end: str


def derive(tokenizer: Tokenizer, bos: str, system: str = _NOT_EMPTY) -> str:
    """A Go template for the chat template of `tokenizer`. It is a candidate: `compare` checks that both render the same.

    bos: what Ollama's tokenizer adds before it. system: one of `SYSTEM_CONDITIONS`. TemplateError for a chat template that
    does not write the texts of a conversation one after the other.
    """
    parts = _parts(tokenizer, bos)
    if parts is None:
        raise TemplateError(
            "the chat template does not write the messages of a conversation one after the other"
        )
    first, following = _literal(parts.first), _literal(parts.next)
    placed = _with_system(tokenizer, bos)
    if placed is not None:
        at_first, at_next = placed
        first = f"{{{{ if {system} }}}}{at_first}{{{{ else }}}}{first}{{{{ end }}}}"
        if at_next is not None:
            following = f"{{{{ if and $last {system} }}}}{at_next}{{{{ else }}}}{following}{{{{ end }}}}"
    after = _literal(parts.after)
    if parts.after != parts.end:
        after = f"{{{{ if $last }}}}{_literal(parts.end)}{{{{ else }}}}{after}{{{{ end }}}}"
    return (
        "{{ $first := true }}{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "user" }}}}{{{{ if $first }}}}{first}{{{{ $first = false }}}}{{{{ else }}}}{following}{{{{ end }}}}'
        f'{{{{ .Content }}}}{after}{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}'
    )


def _parts(tokenizer: Tokenizer, bos: str) -> _Parts | None:
    one = _between(tokenizer, bos, [_user(_FIRST)], [_FIRST])
    two = _between(
        tokenizer,
        bos,
        [_user(_FIRST), _assistant(_ANSWER), _user(_SECOND)],
        [_FIRST, _ANSWER, _SECOND],
    )
    if one is None or two is None:
        return None
    return _Parts(first=one[0], next=two[2], after=two[1], end=one[1])


def _with_system(tokenizer: Tokenizer, bos: str) -> tuple[str, str | None] | None:
    """What comes before the user's first message with a system message, as Go text, and before a later message that is the last.

    The second is None if the system message stands at the beginning. None if the chat template leaves it out, or rejects it.
    """
    system: Message = {"role": "system", "content": _SYSTEM}
    turns = [_user(_FIRST), _assistant(_ANSWER), _user(_SECOND)]
    one = _between(tokenizer, bos, [system, _user(_FIRST)], [_SYSTEM, _FIRST])
    if one is None:
        return None
    first = f"{_literal(one[0])}{{{{ $.System }}}}{_literal(one[1])}"
    late = _between(tokenizer, bos, [system, *turns], [_FIRST, _ANSWER, _SYSTEM, _SECOND])
    if late is None:
        return first, None
    # The first message is written with the system message only if it is the last one too.
    plain = _literal(late[0])
    first = f"{{{{ if $last }}}}{first}{{{{ else }}}}{plain}{{{{ end }}}}"
    return first, f"{_literal(late[2])}{{{{ $.System }}}}{_literal(late[3])}"


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _between(
    tokenizer: Tokenizer, bos: str, messages: Sequence[Message], texts: Sequence[str]
) -> list[str] | None:
    """What is rendered before, between and after the texts; None if they do not appear once, in this order."""
    try:
        rest = tokenizer.render(list(messages), add_generation_prompt=True).removeprefix(bos)
    except TemplateError:
        return None
    if any(rest.count(text) != 1 for text in texts):
        return None
    found = []
    for text in texts:
        before, mark, rest = rest.partition(text)
        if not mark:
            return None
        found.append(before)
    return [*found, rest]


def _literal(text: str) -> str:
    """A text as part of a Go template in a Modelfile: without the marks of Go's actions and of the Modelfile's quotes."""
    text = text.replace("{", '{{ "{" }}') if "{{" in text or text.endswith("{") else text
    return text.replace('"""', '{{ "\\"\\"\\"" }}')
