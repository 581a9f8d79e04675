"""Go templates: executed as Go does, made from chat templates, and compared with them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from tailor.encode.template import Template, builtin_templates, load_template
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.errors import ModelError, TemplateError
from tailor.export import probes
from tailor.export.gotemplate.compare import choose, difference
from tailor.export.gotemplate.ollama import OllamaTemplate
from tailor.export.gotemplate.parse import parse
from tailor.export.gotemplate.run import execute
from tests.helpers.models import byte_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "gotemplates.json").read_text())
"""Templates with the output of Go 1.19's text/template (missingkey=zero, and Ollama's function json); null for an error."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def with_text(tokenizer: Tokenizer, text: str) -> Tokenizer:
    return tokenizer.with_template(Template("own", text))


def bos_of(tokenizer: Tokenizer) -> str:
    return tokenizer.specials["bos_token"] if probes.starts_with_bos(tokenizer) else ""


@pytest.mark.parametrize(("template", "expected"), GOLDEN["cases"])
def test_a_template_prints_what_it_prints_in_go(template: str, expected: str | None) -> None:
    try:
        found = execute(parse(template), GOLDEN["data"])
    except TemplateError:
        found = None
    assert found == expected


def test_a_template_ends() -> None:
    loops = "{{ range .L }}" * 8 + "x" + "{{ end }}" * 8
    with pytest.raises(TemplateError, match="takes too long"):
        execute(parse(loops.replace(".L", "$.L")), {"L": list(range(9))})
    assert execute(parse(loops.replace(".L", "$.L")), {"L": [0]}) == "x", "the control"

    twice = "{{ $x := `ab` }}" + "{{ $x = print $x $x }}" * 40 + "{{ len $x }}"
    with pytest.raises(TemplateError, match="too long a text with print"):
        execute(parse(twice), {})
    assert (
        execute(parse(twice.replace("}}" + "{{ $x = print $x $x }}" * 40, "}}{{ $x = print $x $x }}")), {})
        == "4"
    )
    with pytest.raises(TemplateError, match="writes too long a text"):
        execute(parse("{{ range .L }}{{ $.T }}{{ end }}"), {"L": list(range(99)), "T": "x" * 200_000})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (r'{{ "\x" }}', "escape that Go does not have"),
        (r'{{ "\q" }}', "escape that Go does not have"),
        (r'{{ "\N{BULLET}" }}', "escape that Go does not have"),
        (r'{{ "\ud800" }}', "escape that is no character"),
        (r'{{ "\xff" }}', "bytes in a text"),
        ("{{ " + "9" * 6000 + " }}", "number that is not supported"),
        ("{{ 09 }}", "number that is not supported"),
        ("{{ if true }}" * 5000 + "{{ end }}" * 5000, "nests too deeply"),
        ("{{ if true }}" + "{{ else if true }}" * 5000 + "{{ end }}", "nests too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests too deeply"),
        ("{{ if false }}{{ nothing 1 }}{{ end }}", "calls nothing, which"),
        ("{{ nothing }}", "calls nothing, which"),
        ("x" * 300_000, "more than 200000 characters"),
        ('{{ slice "abc" true }}', "no part True:3"),
        ('{{ slice "a" 0 1 1 }}', "calls slice with other arguments"),
    ],
)
def test_what_go_would_reject_is_a_clear_error(template: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        execute(parse(template), {})


def test_escapes_and_parts_of_texts_are_those_of_go() -> None:
    assert execute(parse(r"""{{ "\x41\101\u00e9\U0001F600\"\\\t" }}{{ '\'' }}{{ slice "é1" 2 }}"""), {}) == (
        'AAé😀"\\\t391'
    )


def test_what_ollama_puts_into_a_template() -> None:
    text = (
        "{{ .System }}|{{ range .Tools }}{{ . }}{{ .Function.Name }}{{ end }}|{{ range .Messages }}{{ .Role }}={{ .Content }}"
        "{{ range .ToolCalls }}{{ .Function.Name }}{{ .Function.Arguments }}{{ end }};{{ end }}"
    )
    messages = [
        {"role": "system", "content": "a"},
        {"role": "system", "content": "b"},
        {"role": "user", "content": "q"},
        {"role": "user", "content": "r"},
    ]
    assert OllamaTemplate(text).render(messages) == "a\n\nb||system=a\n\nb;user=q\n\nr;"
    (_, call) = probes.TOOLS
    found = OllamaTemplate(text).render(call.messages, call.tools)
    assert '{"type":"function","function":{"name":"weather","description":"The weather of a city"' in found
    assert 'assistant=weather{"city":"Paris"};tool=22 degrees;' in found
    for wrong, reason in (
        ("{{ .Prompt }}", "does not read .Messages"),
        ("{{ range .Messages }}{{ .Nothing }}{{ end }}", "reads the field Nothing"),
        ("{{ range .Messages }}", "has range without"),
        ('{{ define "a" }}{{ end }}{{ .Messages }}', "uses define"),
    ):
        with pytest.raises(TemplateError, match=reason):
            OllamaTemplate(wrong).render(messages)


@pytest.mark.parametrize("name", [name for name in builtin_templates() if name != "chatglm2"])
def test_a_built_in_template_is_translated(tokenizer: Tokenizer, name: str) -> None:
    tokenizer = tokenizer.with_template(load_template(name))
    bos = bos_of(tokenizer)
    go, _ = choose(tokenizer, bos, None)
    (*_, many) = probes.TURNS
    assert bos + go.render(many.messages) == probes.rendered(tokenizer, many)
    for probe in (*probes.TURNS, *probes.SYSTEM):
        assert difference(tokenizer, bos, go, probe) is None
    text = (
        go.text.replace("\n", "", 1) if "\n" in go.text else go.text.replace(" }}{{ $last", " }} {{ $last", 1)
    )
    assert any(
        difference(tokenizer, bos, OllamaTemplate(text), one) for one in probes.TURNS + probes.SYSTEM
    ), "control: every character counts"


def test_numbered_rounds_have_no_go_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match=r"renders many turns differently: .*Round 2"):
        choose(tokenizer.with_template(load_template("chatglm2")), "", None)


OWN = {
    "another role's name": "{% for m in messages %}<{{ {'user': 'HUMAN'}.get(m.role, m.role) }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "marks of Go and quotes": '{% for m in messages %}{{ "{{" }}{{ m.role }}{{ "}}" }}"""{{ m.content }}{{ "{" }}{% endfor %}{{ "{{-" }}',
    "a default system message": "{% if messages[0].role != 'system' %}SYS default.\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ",
    "a system message before the last question": "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST]{% if loop.last and s %}<<{{ s }}>>{% endif %}"
    "{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
    "a final turn of its own": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %} #{% else %} |{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}>> {% endif %}",
    "no system message": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
}


@pytest.mark.parametrize("name", OWN)
def test_a_template_of_ones_own_is_translated(tokenizer: Tokenizer, name: str) -> None:
    tokenizer = with_text(tokenizer, OWN[name])
    go, notes = choose(tokenizer, "", None)
    assert '"""' not in go.text, "it would end the Modelfile's text"
    for probe in (*probes.TURNS, *probes.SYSTEM, *probes.EMPTY_SYSTEM):
        assert difference(tokenizer, "", go, probe) is None
    assert ("rejects system messages" in " ".join(notes)) == (name == "no system message")


def test_a_template_that_no_go_template_equals(tokenizer: Tokenizer) -> None:
    for text, reason in (
        ("{{ messages | length }}", "does not write the messages"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not write the messages"),
        (
            "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "renders many turns differently: ",
        ),
    ):
        with pytest.raises(ModelError, match=reason) as error:
            choose(with_text(tokenizer, text), "", None)
        assert "--template" in str(error.value.hint)


def test_a_template_that_needs_tools(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing could be compared, so that any Go template would pass."""
    text = "{% for t in tools %}{{ t }}{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    file = tmp_path / "own.gotmpl"
    file.write_text("{{ range .Messages }}another{{ end }}")
    for own in (None, str(file)):
        with pytest.raises(ModelError, match=r"renders none: .*not iterable"):
            choose(with_text(tokenizer, text), "", own)


def test_the_date_of_yesterday() -> None:
    go = OllamaTemplate("{{ yesterdayDate }}{{ .ThinkLevel }}{{ .Messages | len }}")
    assert go.has_date
    yesterday = datetime.date.today() - datetime.timedelta(days=1)
    assert go.render([{"role": "user", "content": "x"}]) in (f"{yesterday}1", f"{datetime.date.today()}1")


def test_a_go_template_of_the_user_is_compared(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer = tokenizer.with_template(load_template("zephyr"))
    file = tmp_path / "own.gotmpl"
    right = "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n"
    file.write_text(right + "\n")
    go, notes = choose(tokenizer, "", str(file))
    assert (go.text, notes) == (right, [])
    file.write_text(right.replace("<|assistant|>", "<|ASSISTANT|>"))
    with pytest.raises(ModelError, match=r"own.gotmpl renders a question differently: .* at character 29"):
        choose(tokenizer, "", str(file))
    for content, reason in (
        (b"{{ if }}", "cannot be read"),
        (b"\xff", "not UTF-8"),
        (b"{{ .Messages }}", "prints a list"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=reason):
            choose(tokenizer, "", str(file))
    with pytest.raises(ModelError, match="not a file"):
        choose(tokenizer, "", "/dev/zero")
    with pytest.raises(ModelError, match="No such file"):
        choose(tokenizer, "", str(tmp_path / "none"))


def test_notes_name_what_is_rendered_differently(tokenizer: Tokenizer) -> None:
    """White space, tools and an empty system message: the control are templates without these notes."""
    noted = {}
    for name in ("zephyr", "llama-3", "qwen-2.5"):
        chosen = tokenizer.with_template(load_template(name))
        noted[name] = " ".join(choose(chosen, bos_of(chosen), None)[1])
    assert [word in noted["llama-3"] for word in ("white space", "tools", "empty")] == [True, False, False]
    assert [word in noted["qwen-2.5"] for word in ("white space", "tools", "empty")] == [False, True, True]
    assert (
        noted["zephyr"] == "a system message after the first message is rendered differently: send it first"
    )
    dated = with_text(
        tokenizer,
        "{{ strftime_now('%d %b') }}{% for m in messages %}|{{ m.role }}: {{ m.content }}{% endfor %}|",
    )
    assert choose(dated, "", None)[1] == [
        "the chat template writes the date, and Ollama's always that of the export",
        "a system message after the first message is rendered differently: send it first",
    ]
