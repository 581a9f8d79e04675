"""The chat template: whether training and chat render the same text before an answer."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, excerpt, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally
from tailor.encode.records import Chat
from tailor.encode.template import render
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.turns import TurnRules

_FIX = "data:\n  template: chatml"


class GenerationPrompt(Check):
    """For templates with `{% generation %}` markers, compares each conversation with the prompt that a chat would render.

    Without markers, training already begins each answer where the prompt ends, and leaves out rows where it cannot.
    error: why the template cannot be used at all.
    """

    def __init__(self, tokenizer: Tokenizer, rules: TurnRules | None, error: str = "") -> None:
        self._tokenizer = tokenizer
        self._compares = rules is not None and rules.markers
        self._error = error

    def row(self, row: Row, tally: Tally) -> None:
        record = row.record
        if not self._compares or row.examples is None or not isinstance(record, Chat):
            return
        turn = next((at for at, one in enumerate(record.messages) if one["role"] == "assistant" and at), None)
        if turn is None:
            return
        template, specials = self._tokenizer.require_template(), self._tokenizer.specials
        try:
            whole = render(template, record.messages, record.tools, specials)
            prompt = render(
                template, record.messages[:turn], record.tools, specials, add_generation_prompt=True
            )
        except jinja2.TemplateError:
            return
        if not whole.startswith(prompt):
            at = next(
                (at for at, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), len(whole)
            )
            tally.add("generation_prompt", row, f"a chat would begin with {excerpt(prompt, at)}")

    def findings(self, examined: Examined) -> Iterator[Finding]:
        if self._error:
            yield Finding("template", "error", self._error, 1, fix=_FIX)
        yield from finding_of(
            "generation_prompt",
            "error",
            "conversations whose text before the first answer differs between training and chat",
            examined.found.get("generation_prompt"),
            _FIX,
        )
