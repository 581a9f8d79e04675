"""Foreign text in a model card adds no markup, no raw HTML and no path of this machine."""

from __future__ import annotations

import pytest

from tailor.export.card import public_recipe
from tailor.export.markdown import code, folded, inline, table, without_local_paths
from tailor.spec.reading.source import parse


@pytest.mark.parametrize("ticks", range(1, 9))
def test_a_fence_is_longer_than_any_run_in_it(ticks: int) -> None:
    text = f"a\n{'`' * ticks}\n</details><script>x</script>\n"
    lines = folded("T", "yaml", text).splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.endswith("yaml")]
    fence = lines[start].removesuffix("yaml")
    assert set(fence) == {"`"}
    end = next(number for number in range(start + 1, len(lines)) if lines[number] == fence)
    assert lines[start + 1 : end] == text.splitlines()
    assert lines[end + 1 :] == ["", "</details>"]


def test_html_and_markup_are_escaped() -> None:
    hostile = "<img src=x onerror=y>\n# head | ![i](http://x) `c` &amp; \x1b[2J\u202e"
    shown = inline(hostile)
    assert (
        shown
        == r"&lt;img src=x onerror=y&gt; # head \| !\[i\](http://x) \`c\` &amp;amp; \x1b\[2J\u202e".replace(
            r"\x1b", r"\\x1b"
        ).replace(r"\u202e", r"\\u202e")
    )
    assert "\n" not in shown
    assert shown in table(["a"], [[hostile]])
    assert code("a`b``c") == "``` a`b``c ```"
    assert code("mit") == "`mit`"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/models/base", "…/base"),
        ("/home/my user/models/base", "…/base"),
        ("~/models/base", "…/base"),
        ("file:///data/rows.jsonl", "…/rows.jsonl"),
        (r"C:\Users\me\rows.jsonl", "…/rows.jsonl"),
        ("resumed from /home/me/run with x", "resumed from …/run with x"),
        ("1 empty: /data/a/rows.jsonl:3 no text", "1 empty: …/rows.jsonl:3 no text"),
        ("hf://org/name", "hf://org/name"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("https://host/a/b", "https://host/a/b"),
        ("org/name", "org/name"),
        ("data/rows.jsonl", "data/rows.jsonl"),
        ("3 s/step, 1/2", "3 s/step, 1/2"),
    ],
)
def test_local_paths(text: str, public: str) -> None:
    assert without_local_paths(text) == public


def test_a_recipe_without_local_paths() -> None:
    recipe = "model:\n  path: /home/my user/base\n  revision: '10'\ndata:\n  train:\n    - path: hf://org/x\nsave:\n  to: /runs/a/b\n"
    values = parse(public_recipe(recipe), "r").values
    assert values == {
        "model": {"path": "…/base", "revision": "10"},
        "data": {"train": [{"path": "hf://org/x"}]},
        "save": {"to": "…/b"},
    }
