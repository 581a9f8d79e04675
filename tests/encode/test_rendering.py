"""Chat templates that do not end, fill the memory, fail, or ask for the date."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from tailor.encode.template import Template, load_template, render, render_marked
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import TemplateError
from tests.helpers.models import CHATML, byte_tokenizer
from tests.helpers.preparation import contents

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
_GROW = "{{% set ns = namespace(s={0}) %}}{{% for i in range(60) %}}{{% set ns.s = {1} %}}{{% endfor %}}{{{{ ns.s }}}}"
_LONG = "{% set s = 'A' * 1000000 %}"
_TWICE = (
    "{{% set ns = namespace(a=[1], b=[1]) %}}{{% for i in range(60) %}}{{% set ns.a = [ns.a, ns.a] %}}"
    "{{% set ns.b = [ns.b, ns.b] %}}{{% endfor %}}{0}"
)
ENDLESS = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "doubled text": _GROW.format("'A'", "ns.s + ns.s"),
    "doubled by ~": _GROW.format("'A'", "ns.s ~ ns.s"),
    "doubled list": _GROW.format("[1]", "ns.s + ns.s"),
    "shared lists": _GROW.format("[1]", "[ns.s, ns.s]"),
    "squared": _GROW.format("9", "ns.s * ns.s"),
    "a constant": "{{ 'A' * 10 ** 10 }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "format": "{{ '{:>9999999999}'.format('a') }}",
    "replace": _LONG + "{{ s.replace('A', s) }}",
    "replace filter": _LONG + "{{ s | replace('A', s) }}",
    "join": _LONG + "{{ range(99999) | join(s) }}",
    "output": _LONG + "{% for i in range(99999) %}{{ s }}{% endfor %}",
    "block": "{% set ns = namespace(s='A') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = x %}{% endfor %}",
    "indent": "{{ {'a': 1} | tojson(indent=10 ** 9) }}",
    "sums": "{% for i in range(9999) %}{{ range(99999) | sum }}{% endfor %}",
    # One call each that would make gigabytes.
    "translate": _LONG + "{% set s = s.translate({65: s}) %}",
    "expandtabs": "{% set s = ('\t' * 9999).expandtabs(999999) %}",
    "wrapped": _LONG + "{% set s = ('a ' * 9999) | wordwrap(1, true, s) %}",
    "indented JSON": "{% set s = range(9999) | list | tojson(indent=999999) %}",
    "indented lines": "{% set s = ('b\n' * 9999) | indent(999999) %}",
    "fields": _LONG + "{% set s = ('{0}' * 9999).format(s) %}",
    "wide fields": "{% set s = ('{:>999999}' * 9999).format(1) %}",
    "percents": _LONG + "{% set s = ('%(s)s' * 9999) % {'s': s} %}",
    "mapped": "{% set s = range(9999) | map('string') | map('center', 999999) | list %}",
    "kept": "{% set ns = namespace(s=[]) %}{% for m in range(9999) %}"
    "{% set ns.s = ns.s + [m | string | center(999999)] %}{% endfor %}",
    "joined lists": "{% set s = ([[1]] * 99999) | sum(start=[]) %}",
    # Lists in lists, of a few parts each.
    "compared": _TWICE.format("{{ ns.a == ns.b }}"),
    "tested": _TWICE.format("{{ ns.a is eq ns.b }}"),
    "searched": _TWICE.format("{{ ns.a in [ns.b] }}"),
    "counted": _TWICE.format("{{ [ns.a].count(ns.b) }}"),
    "sorted": _TWICE.format("{{ [ns.a, ns.b] | sort | length }}"),
    "hashed": _GROW.format("(1,)", "(ns.s, ns.s)") + "{% set d = {ns.s: 1} %}",
}
FAILING = {
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{{ messages() }}": "'list' object is not callable",
    "{{ messages.a.b }}": "has no attribute",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "nested too deeply",
    "{{ raise_exception('never') }}": "never",
    "{{ lipsum() }}": "'lipsum' is undefined",
    "{{ [1, 2] | random }}": "No filter named 'random'",
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_does_not_end_is_a_named_error(text):
    with pytest.raises(
        jinja2.TemplateError, match=r"steps|text of more|huge|number over|too deeply|indents JSON"
    ):
        render(Template("t", text), TALK, None, {}, probe=True)


@pytest.mark.parametrize(("text", "why"), FAILING.items())
def test_every_error_of_a_template_is_a_named_one(text, why):
    with pytest.raises(jinja2.TemplateError, match=why):
        render(Template("t", text), TALK, None, {})
    with pytest.raises(jinja2.TemplateError, match=why):
        render_marked(Template("t", text + "{% generation %}{% endgeneration %}"), TALK, None, {})


def test_limits_change_nothing_of_what_a_template_writes():
    """Loops, joins, formats and filters give what transformers gives without limits."""
    from transformers.utils.chat_template_utils import render_jinja_template

    text = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.revindex }} "
        "{{ loop.previtem.role if loop.previtem is defined }}{{ m.role ~ ':' ~ m.content + '!' * 3 }}\n"
        "{% if loop.index == 5 %}{% break %}{% endif %}{% endfor %}"
        "{{ '%s-%03d' % ('a', 7) }}{{ '{:>4}'.format('b') }}{{ messages | tojson(indent=1) }}"
        "{% for k, v in {'x': [1, (2,)]}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}"
        "{% for m in messages if m.role == 'user' %}{{ loop.length }}{% endfor %}{% for x in missing %}{% endfor %}"
        "{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i ** 2 %}{% endfor %}{{ ns.n % 3 }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ 'aXa'.replace('X', 'bb') | upper }}"
        "{% for n in [1, [2, [3]]] recursive %}{{ loop(n) if n is iterable else n }}{% endfor %}"
    )
    (expected,), _ = render_jinja_template([TALK * 4], chat_template=text)
    assert render(Template("t", text), TALK * 4, None, {}) == expected
    assert "8" in expected


@pytest.mark.parametrize("name", ["nested loops", "doubled text", "a constant"])
def test_such_a_template_is_refused_before_any_row(bench, name):
    path = bench.folder / "bad.jinja"
    path.write_text(ENDLESS[name])
    with pytest.raises(
        TemplateError, match=r"chat template bad.jinja: rendering a plain conversation fails: it "
    ):
        bench(template=str(path))


def test_a_row_on_which_the_template_does_not_end_is_counted(bench):
    """The template is right on all rows but one."""
    path = bench.folder / "some.jinja"
    path.write_text(
        "{% for m in messages if 'is 20 and' in m.content %}{% for a in range(9999) %}{% for b in range(9999) %}"
        "{% endfor %}{% endfor %}{% endfor %}" + CHATML
    )
    prepared = bench(template=str(path), budget={"unreadable": 0.1})
    (source,) = prepared.tokens.manifest["report"]["sources"]
    assert source["unreadable"]["template"]["count"] == 1
    assert source["kept"] == 199


DATED = "{{ strftime_now('%d %b %Y') }} " + CHATML


def test_the_date_is_fixed_and_in_fingerprint_and_manifest(bench):
    path = bench.folder / "clock.jinja"
    path.write_text(DATED)
    first, again = (bench(template=str(path)) for _ in range(2))
    assert again.reused
    assert first.tokens.manifest["template"]["date"] == "2024-07-26"
    other = bench(template=str(path), date="2026-01-02")
    assert not other.reused
    assert other.tokens.manifest["fingerprint"] != first.tokens.manifest["fingerprint"]
    assert contents(other.tokens) != contents(first.tokens)
    # The control: a template without a date has no date, and the key changes nothing of it.
    plain = bench()
    assert plain.tokens.manifest["template"]["date"] is None
    assert bench(date="2026-01-02").reused
    assert render(Template("t", DATED, date="2026-01-02"), TALK, None, {}).startswith("02 Jan 2026 ")


def test_probes_have_a_lower_limit(tmp_path: Path) -> None:
    """A dozen probes of two seconds each ran before the first row."""
    byte_tokenizer(tmp_path)
    heavy = "{% for i in range(20) %}{% set y = range(99999) | list | sort | reverse | list %}{% endfor %}"
    file = tmp_path / "heavy.jinja"
    file.write_text(heavy + load_template("chatml").text)
    tokenizer = load_tokenizer(str(tmp_path), None, str(file))
    assert render(tokenizer.require_template(), TALK, None, {}), "control: a row may take so long"
    with pytest.raises(TemplateError, match=r"does not end within 200,000 steps"):
        turn_rules(tokenizer)
