"""Prompts to generate from, and answers as text: nothing of a conversation or of an answer is lost in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.encode.prompts import answer_text, render_prompt
from tailor.encode.template import Template
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import TemplateError
from tests.helpers.models import CHATML, byte_tokenizer

TOOL = {"type": "function", "function": {"name": "measure", "description": "Measures.", "parameters": {}}}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "How long?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "m", "arguments": {}}}],
}
RESULT = {"role": "tool", "content": "61 cm"}
SAID = {"role": "assistant", "content": "61 cm."}
USER_ONLY = (
    "{% for message in messages if message.role in ('user', 'assistant') %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders user and assistant turns alone."""
FIRST_SYSTEM = (
    "{% for message in messages %}{% if message.role != 'system' or loop.first %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
"""Renders no system message but the first."""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(tmp_path)))


@pytest.mark.parametrize(
    ("messages", "tools", "what"),
    [
        ([SYSTEM, ASKED], None, "system messages"),
        ([ASKED], [TOOL], "the tools"),
        ([ASKED, CALL, RESULT], None, "tool"),
        ([ASKED, SAID, SYSTEM, ASKED], None, "later system messages"),
    ],
)
def test_what_a_template_drops_is_refused(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[Any] | None, what: str
) -> None:
    dropping = tokenizer.with_template(Template("short", FIRST_SYSTEM if "later" in what else USER_ONLY))
    with pytest.raises(TemplateError, match=f"chat template short: silently drops .*{what}"):
        render_prompt(dropping, messages, tools)
    assert render_prompt(dropping, [ASKED]) == dropping.render([ASKED], add_generation_prompt=True)


def test_a_template_that_renders_everything_is_not_refused(tokenizer: Tokenizer) -> None:
    """The control."""
    assert CHATML in (tokenizer.require_template().text)
    assert "Be brief." in render_prompt(tokenizer, [SYSTEM, ASKED])


def test_reasoning_and_calls_are_written_as_in_training(tokenizer: Tokenizer) -> None:
    """gpt-oss's own template reads reasoning from `thinking`, and the first call of a turn."""
    written = (
        "{% for m in messages %}{{ m.role + ':' + (m.thinking or '') + m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endif %}; {% endfor %}"
    )
    template = tokenizer.with_template(Template("short", written))
    other = {"type": "function", "function": {"name": "n", "arguments": {}}}
    both = {**CALL, "reasoning_content": "Two.", "tool_calls": [*CALL["tool_calls"], other]}
    prompt = render_prompt(template, [ASKED, both, RESULT, {**RESULT, "content": "5 kg"}])
    assert prompt == "user:How long?; assistant:Two.m; tool:61 cm; assistant:n; tool:5 kg; "
    with pytest.raises(
        TemplateError, match="message 2 has 2 tool calls, and the chat template writes one per turn"
    ):
        render_prompt(template, [ASKED, both, RESULT])


def test_special_tokens_inside_an_answer_stay(tokenizer: Tokenizer) -> None:
    """Marks of tool calls and of channels are special tokens in many tokenizers. BOS, EOS and padding are no text."""
    mark, end = tokenizer.encode("<|im_start|>"), [tokenizer.eos_id, tokenizer.pad_id]
    assert len(mark) == 1
    ids = [tokenizer.bos_id, *tokenizer.encode(" call"), *mark, *tokenizer.encode("{}\n"), *end]
    assert answer_text(tokenizer, ids) == "call<|im_start|>{}"
