"""The lines of an Ollama Modelfile, as Ollama's parser (parser/parser.go) reads them: quotes, but no escapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import ModelError
from tailor.printable import printable

SAMPLING = {"temperature": float, "top_p": float, "top_k": int}
"""Settings of generation_config.json that Ollama has under the same name, with their types."""
_THREE = '"""'


def line(command: str, value: str) -> str:
    """A command with its value. ModelError for a value that no quotes can hold.

    A value ends at the first line end before which its quotes are closed. Nothing in it is escaped, so a quoted `\\n` would
    be a backslash and an n.
    """
    simple = "" if command in ("FROM", "ADAPTER") else '"'
    for quotes in (_THREE,) if re.search(r'["\r\n]', value) else (simple, _THREE):
        if _read(f"{quotes}{value}{quotes}\n") == value:
            return f"{command} {quotes}{value}{quotes}"
    raise ModelError(
        f"a Modelfile cannot hold the value of {command}: {printable(value)[:60]}",
        hint=f"avoid {_THREE} at the end of a line"
        if _THREE in value
        else "avoid line ends and quotes in it",
    )


def _read(text: str) -> str | None:
    """The value that Ollama reads from a text which ends with a line end; None if it ends before or after it."""
    for at, sign in enumerate(text):
        if sign in "\r\n" and (value := _unquoted(text[:at].strip())) is not None:
            return value if at == len(text) - 1 else None
    return None


def _unquoted(text: str) -> str | None:
    """The text without its quotes; None if they are not closed."""
    for quotes in (_THREE, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def parameters(tokenizer: Tokenizer, generation: Mapping[str, Any], context: int) -> list[str]:
    """The parameters: stop tokens, context length in tokens, and sampling. generation: generation_config.json.

    ModelError for a setting of sampling that is no number.
    """
    ends = generation.get("eos_token_id")
    stops = [tokenizer.token(token) for token in ([ends] if isinstance(ends, int) else list(ends or []))]
    # Always written: before 2026, Ollama's default was 1.1, which would change the answers.
    settings = {key: generation[key] for key in SAMPLING if generation.get(key) is not None}
    numbers = settings | {"repetition_penalty": generation.get("repetition_penalty") or 1}
    for key, value in numbers.items():
        _require_number(key, value, SAMPLING.get(key, float))
    return [
        *(line("PARAMETER stop", stop) for stop in stops),
        f"PARAMETER num_ctx {context}",
        *(f"PARAMETER {key} {value}" for key, value in settings.items()),
        f"PARAMETER repeat_penalty {numbers['repetition_penalty']}",
    ]


def _require_number(key: str, value: object, kind: type) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (kind is int and not isinstance(value, int)):
        raise ModelError(
            f"generation_config.json: {key} is {printable(repr(value))[:40]}, not {'an integer' if kind is int else 'a number'}",
            hint=f"correct or remove {key} in the run's generation_config.json",
        )
