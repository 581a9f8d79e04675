"""`data.template_arguments`: variables of the chat template, written into its text as defaults.

So they are part of the fingerprint, and whatever uses the saved template (chat, evaluation, export) uses them too.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import TemplateError

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_NAME = re.compile(r"[^\W\d]\w*")


def with_arguments(tokenizer: Tokenizer, arguments: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer with the arguments in its template. TemplateError for one that the template does not use."""
    if not arguments:
        return tokenizer
    template = tokenizer.require_template()
    texts = [text for text in (template.text, template.tool_use) if text is not None]
    words = {word for text in texts for word in _NAME.findall(text)}
    for name in arguments:
        if name in _RESERVED or name in tokenizer.specials:
            raise TemplateError(
                f"data.template_arguments: {name} is set by tailor", hint="remove it from the arguments"
            )
        if name not in words:
            near = difflib.get_close_matches(name, sorted(words), n=1)
            raise TemplateError(
                f"data.template_arguments: chat template {template.name} does not use {name}",
                hint=f"did you mean {near[0]}?" if near else "remove it, or choose a template that uses it",
            )
    head = "".join(
        f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} %}}"
        for name, value in sorted(arguments.items())
    )
    tool_use = None if template.tool_use is None else _joined(head, template.tool_use)
    return tokenizer.with_template(replace(template, text=_joined(head, template.text), tool_use=tool_use))


def _joined(head: str, text: str) -> str:
    # Renderers remove one newline after a block; the template's own first newline stays.
    return f"{head}\n{text}" if text[:1].isspace() else head + text


def _literal(value: Any) -> str:
    """A value of YAML in Jinja's notation."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
