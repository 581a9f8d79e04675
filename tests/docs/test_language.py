"""The documents and the comments of the recipes use the field's words, in American spelling."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_pages import DOCUMENTS, ROOT

GENERATED = ("-reference.md", "map.md", "models.md", "CONTRIBUTING.md")
TEXTS = [
    *(path for path in DOCUMENTS if not path.name.endswith(GENERATED)),
    *sorted((ROOT / "recipes").glob("*.yaml")),
    *sorted((ROOT / "cluster").glob("*.yaml")),
]
INSTEAD = {
    r"mend(s|ed)?": "hint, fix",
    r"tells?|told": "report, log, warn",
    r"go(es)? on|going on": "resume, continue",
    r"anew": "again",
    r"stands? in": "is in, replaces",
    r"idle keys?": "unused key",
    r"sisters?": "others of the kind",
    r"artefacts?": "artifact",
    r"survey(s|ed)?": "pre-pass",
    r"shared? out": "sharded",
    r"(quanti|normali|optimi|recogni|initiali|minimi)s(e|es|ed|ing|ation)": "the spelling with z",
    r"colours?|behaviours?|licences?|labell(ed|ing)|neighbours?": "American spelling",
}
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def private_words(text: str) -> list[str]:
    """Words of a text, outside of code, that a reader of the field would not use here."""
    text = _CODE.sub("", text)
    found = []
    for pattern, better in INSTEAD.items():
        for match in re.finditer(rf"\b({pattern})\b", text, re.IGNORECASE):
            found.append(f"line {text[: match.start()].count(chr(10)) + 1}: {match[0]}: {better}")
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_the_fields(path: Path) -> None:
    assert private_words(path.read_text()) == []


def test_private_words_are_seen() -> None:
    """Control: words of the list are found in prose and not in code."""
    assert private_words("The run\ngoes on, quantised.") == [
        "line 2: goes on: resume, continue",
        "line 2: quantised: the spelling with z",
    ]
    assert private_words("`mend`\n```\nartefact\n```\nThe run resumes, quantized.") == []
