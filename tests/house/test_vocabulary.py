"""Docstrings, comments, messages, documents and recipes use the field's words, in American spelling.

Names in the code, backticks and code blocks are not checked.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "tailor").rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.yaml", "cluster/*.yaml", "cluster/*.md", "docker/*.md")
    for path in ROOT.glob(pattern)
)
INSTEAD = {
    r"mend(s|ed|ing)?": "hint, fix",
    r"tell(s|ing)?|told": "report, log, warn, say; distinguish",
    r"(go|goes|going|went) on": "resume, continue",
    r"held(?! ?-?out)": "kept, stored; base-model record",
    r"surveys?|surveyed": "pre-pass",
    r"places?(?<!\bin place)(?! ?-?holder)": "position, location, output",
    r"wanted": "positive, desirable, requested",
    r"mismatched": "KL batch",
    r"idle keys?": "unused key",
    r"hunts?": "needle prompt",
    r"two streams": "GRIT batches",
    r"(share|shares|shared|sharing|cut) out|shared out": "shard",
    r"artefacts?": "artifact",
    r"anew": "again",
    r"sisters?": "similar ones",
    r"dear(er|est)?": "expensive",
    r"(stand|stands|stood|standing) (in|for|there|beside|before|below|above|on)": "is in, is",
    r"(lie|lies|lay|lying) (in|below|beside|beneath|above|between|there|end)": "is in",
    r"so many|so much|of so": "N, this many",
    r"riddles?": "ambiguity",
    r"in vain": "without success",
    r"want of": "lack of",
    r"(normali|optimi|recogni|initiali|minimi|maximi|quanti|seriali|utili|organi|tokeni|summari|synchroni)s(e|es|ed|er|ing|ation)": "z",
    r"colou?rs?(?<!colors)(?<!color)|behaviours?|licences?|labell(ed|ing)|neighbours?|favour(s|ed)?|judgements?": "American spelling",
}
_CODE = re.compile(r"^ *(```|~~~).*?^ *\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def private_words(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, word, better word) of words that are not the field's words."""
    plain = _CODE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for pattern, better in INSTEAD.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", plain, re.IGNORECASE):
            yield plain[: match.start()].count("\n") + 1, match[0], better


def prose(code: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the comments, docstrings and other texts with several words in a module."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def in_module(code: str) -> list[str]:
    return sorted(
        f"{line + own - 1}: {word}: {better}"
        for line, text in prose(code)
        for own, word, better in private_words(text)
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_use_the_words_of_the_field(path: Path) -> None:
    assert in_module(path.read_text()) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(path: Path) -> None:
    found = [f"{line}: {word}: {better}" for line, word, better in private_words(path.read_text())]
    assert found == []


def test_control_private_words_are_found() -> None:
    code = (
        '''"""A run goes on."""\nx = f"the artefact of {1} is told"  # dear\ny = "held"\nz = "`mend` it"\n'''
    )
    assert in_module(code) == [
        "1: goes on: resume, continue",
        "2: artefact: artifact",
        "2: dear: expensive",
        "2: told: report, log, warn, say; distinguish",
    ]
    assert [word for _, word, _ in private_words("The run\nresumes.\n```\ngoes on\n```\nQuantised.")] == [
        "Quantised"
    ]
