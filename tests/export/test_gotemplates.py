"""Ollama's templates render the same text as the Jinja templates, or are rejected."""

from __future__ import annotations

import pytest

from tailor.encode.template import builtin_templates, load_template, render
from tailor.errors import ModelError
from tailor.export.forms.gotemplates import TEMPLATES, translated
from tests.helpers.gotemplate import execute, ollama

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
USER, AGAIN = {"role": "user", "content": "Hello { you }"}, {"role": "user", "content": "And\nthen?"}
ANSWER = {"role": "assistant", "content": 'Good "day" %} to\n\nyou'}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "one question": [USER],
    "system": [SYSTEM, USER],
    "several turns": [USER, ANSWER, AGAIN],
    "system and turns": [SYSTEM, USER, ANSWER, AGAIN, ANSWER, USER],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_both_render_the_same(name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    template = load_template(name)
    expected = render(template, messages, None, SPECIALS, add_generation_prompt=True)
    text, known = translated(template.text, SPECIALS)
    found = ollama(text, messages)
    assert (SPECIALS["bos_token"] if known.bos else "") + found == expected
    if conversation == "system and turns" and "\n" in text:
        assert ollama(text.replace("\n", "", 1), messages) != found, "control: every character counts"


@pytest.mark.parametrize("name", TEMPLATES)
def test_which_templates_strip(name: str) -> None:
    """A note is shown where white space around a message would be rendered differently."""
    template = load_template(name)
    messages = [{"role": "system", "content": " a "}, {"role": "user", "content": " b "}]
    messages += [{"role": "assistant", "content": " c "}, {"role": "user", "content": " d "}]
    text, known = translated(template.text, SPECIALS)
    expected = render(template, messages, None, SPECIALS, add_generation_prompt=True)
    assert known.strips == (expected.removeprefix("<s>") != ollama(text, messages))


def test_an_empty_system_turn_is_left_out_by_chatml() -> None:
    messages = [{"role": "system", "content": ""}, USER]
    template = load_template("chatml")
    text, _ = translated(template.text, SPECIALS)
    assert ollama(text, messages) == render(template, messages, None, SPECIALS, add_generation_prompt=True)


def test_other_templates_are_rejected() -> None:
    with pytest.raises(ModelError, match="is not a built-in one"):
        translated(load_template("chatml").text.replace("im_start", "start"), SPECIALS)
    for name in sorted(set(builtin_templates()) - set(TEMPLATES)):
        with pytest.raises(ModelError, match=f"the chat template {name} has no exact translation"):
            translated(load_template(name).text, SPECIALS)


def test_the_interpreter() -> None:
    """Control: the small Go interpreter renders different texts differently."""
    data = {"A": "x", "L": [{"B": 1}, {"B": 2}]}
    assert execute('{{ if eq .A "x" }}1{{ else }}2{{ end }}', data) == "1"
    assert execute('{{ if ne .A "x" }}1{{ else if gt 3 2 }}2{{ else }}3{{ end }}', data) == "2"
    assert (
        execute("{{ range $i, $l := .L }}{{ $i }}{{ $l.B }}{{ .B }}{{ $.A }};{{ end }}", data) == "011x;122x;"
    )
    assert execute('{{ if and .A (or "" 0) }}1{{ end }}.', data) == "."
