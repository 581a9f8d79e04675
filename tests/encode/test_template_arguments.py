"""Arguments of the chat template are defaults in its text: rendered, saved, and part of the fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tailor.encode.template import Template
from tailor.encode.template_arguments import with_arguments
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import TemplateError
from tests.helpers.marked_rows import Rows, chat
from tests.helpers.models import CHATML, byte_tokenizer

SHOWS = "{{ value | tojson }} {{ value is none }}"


@pytest.mark.parametrize("value", [False, True, None, 3, 0.5, 'a"b', "ü", [1, "x"], {"a": {"b": None}}])
def test_values(tmp_path: Path, value: Any) -> None:
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)))
    given = with_arguments(tokenizer.with_template(Template("t", SHOWS)), {"value": value})
    expected = render_jinja_template(
        conversations=[[{"role": "user", "content": ""}]], chat_template=SHOWS, value=value
    )[0][0]
    assert given.render([{"role": "user", "content": ""}]) == expected


def test_the_text_is_otherwise_the_same(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)))
    for text in (
        "\n a{{ value }}\n",
        "  {% if value %}b\n{% endif %}",
        "{{ value }}",
        "{#- c #}\n{{ value }}x",
    ):
        plain = render_jinja_template(conversations=[[]], chat_template=text, value=1)[0][0]
        given = with_arguments(tokenizer.with_template(Template("t", text)), {"value": 1})
        assert given.render([]) == plain


def test_qwen_3_without_thinking(tmp_path: Path) -> None:
    """The empty block is in the generation prompt, as Qwen's own template writes it, and is not learned."""
    rows = Rows(tmp_path)
    row = [chat("q1", "a1", "q2", "a2")]
    texts = rows.marked(row, template="qwen-3", template_arguments={"enable_thinking": False})[0]
    assert {text.split("«")[1] for text in texts} == {"a1<|im_end|>»\n", "a2<|im_end|>»\n"}
    assert all(text.split("«")[0].endswith("assistant\n<think>\n\n</think>\n\n") for text in texts)
    # The control: otherwise the model learns to write the empty block.
    assert any("«<think>" in text for text in rows.marked(row, template="qwen-3")[0])


def test_fingerprint_and_saved_template(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    template = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n{{ lead }}{%")
    manifests = [
        rows.prepared([chat("a", "b")], template=template, template_arguments=arguments).tokens.manifest
        for arguments in ({}, {"lead": ""}, {"lead": ""})
    ]
    names = [manifest["fingerprint"] for manifest in manifests]
    assert names[0] != names[1] == names[2]
    assert manifests[1]["template"]["text"].startswith("{%- set lead = ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinkin": False}, "does not use enable_thinkin; did you mean enable_thinking"),
        ({"zzz": 1}, "does not use zzz"),
        ({"messages": []}, "messages is set by tailor"),
        ({"eos_token": "x"}, "eos_token is set by tailor"),
    ],
)
def test_arguments_without_effect_are_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        Rows(tmp_path).marked([chat("a", "b")], template="qwen-3", template_arguments=arguments)
    assert message in str(caught.value)
