"""Rows in another script or language than nearly all rows of their source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally

_SCRIPTS = (
    ("Latin", ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF))),
    ("Greek", ((0x370, 0x3FF), (0x1F00, 0x1FFF))),
    ("Cyrillic", ((0x400, 0x52F),)),
    ("Armenian", ((0x530, 0x58F),)),
    ("Hebrew", ((0x590, 0x5FF),)),
    ("Arabic", ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF))),
    ("Devanagari", ((0x900, 0x97F),)),
    ("Bengali", ((0x980, 0x9FF),)),
    ("Tamil", ((0xB80, 0xBFF),)),
    ("Telugu", ((0xC00, 0xC7F),)),
    ("Thai", ((0xE00, 0xE7F),)),
    ("Georgian", ((0x10A0, 0x10FF),)),
    ("Ethiopic", ((0x1200, 0x137F),)),
    ("Khmer", ((0x1780, 0x17FF),)),
    ("kana", ((0x3040, 0x30FF),)),
    ("Han", ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))),
    ("Hangul", ((0x1100, 0x11FF), (0xAC00, 0xD7AF))),
)
_BLOCKS = sorted((low, high, at + 1) for at, (_, blocks) in enumerate(_SCRIPTS) for low, high in blocks)
_LOWS, _HIGHS, _OWNERS = (np.array(column) for column in zip(*_BLOCKS, strict=True))

# The most frequent function words that few of the other languages share.
_FUNCTION_WORDS = {
    "English": "the and of to is that it for you with are this was have not be from which",
    "German": "der die das und ist nicht ein eine zu mit den auf für sich dem von auch wird",
    "French": "le les des et est une que dans pour qui sur pas vous avec au du sont ce",
    "Spanish": "el los las y que una para con por es del se como más lo su pero está",
    "Italian": "il gli che di una per non è della con sono si del nel anche più questo le",
    "Portuguese": "o os que uma para não com em do da é se mais dos como ao você foi",
    "Dutch": "de het een en van is dat niet voor met zijn op te aan ook maar wordt naar",
    "Polish": "i w nie na się jest że z to do jak ale przez są tak dla od które",
    "Turkish": "ve bir bu için ile olarak da de daha çok gibi olan var ne kadar sonra",
}
_LANGUAGES = tuple(_FUNCTION_WORDS)
_LANGUAGES_OF = {
    word: tuple(at for at, words in enumerate(_FUNCTION_WORDS.values()) if word in words.split())
    for words in _FUNCTION_WORDS.values()
    for word in words.split()
}
_WORD = re.compile(r"[^\W\d_]+")
_CHARACTERS = 4000
"""Characters of a row that are looked at."""
_MIN_LETTERS, _MIN_WORDS = 20, 20
_MOST, _FEW = 0.95, 0.02
_MIN_ROWS = 50


class Language(Check):
    """The script with most letters, and for Latin script the language with most function words."""

    def row(self, row: Row, tally: Tally) -> None:
        text = _sample([*row.texts.prompt, *row.texts.answer])
        tally.put("script", script := _script(text))
        tally.put("language", _language(text) if script == 1 else 0)

    def findings(self, examined: Examined) -> Iterator[Finding]:
        for column, names, what in (
            ("script", [name for name, _ in _SCRIPTS], "script"),
            ("language", list(_LANGUAGES), "language"),
        ):
            values = examined.columns[column]
            for source, rows in examined.by_source(values > 0):
                counts = np.bincount(values[rows], minlength=len(names) + 1)
                main = int(counts.argmax())
                if len(rows) < _MIN_ROWS or counts[main] < _MOST * len(rows):
                    continue
                rare = np.flatnonzero((counts > 0) & (counts <= _FEW * len(rows)))
                others = rows[np.isin(values[rows], rare[rare != main])]
                details = [names[int(values[row]) - 1] for row in others[:20]]
                yield from finding_of(
                    f"{what}_outliers",
                    "info",
                    f"rows of {source} that are not in the {what} of nearly all of its rows, {names[main - 1]}",
                    examined.named(others, details),
                )


def _sample(texts: Sequence[str]) -> str:
    """The start of each text, so that a long prompt does not hide the answer."""
    share = max(200, _CHARACTERS // max(len(texts), 1))
    return " ".join(text[:share] for text in texts)[: 2 * _CHARACTERS]


def _script(text: str) -> int:
    """The index of the script with most letters, from 1; 0 for a text with few letters."""
    if text.isascii():
        return int(sum(map(str.isalpha, text)) >= _MIN_LETTERS)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    at = np.searchsorted(_LOWS, codes, "right") - 1
    inside = (at >= 0) & (codes <= _HIGHS[np.maximum(at, 0)])
    counts = np.bincount(_OWNERS[at[inside]], minlength=len(_SCRIPTS) + 1)
    return int(counts.argmax()) if counts.sum() >= _MIN_LETTERS else 0


def _language(text: str) -> int:
    """The index of the language, from 1; 0 without enough function words."""
    words = _WORD.findall(text.lower())
    if len(words) < _MIN_WORDS:
        return 0
    hits = [0] * len(_LANGUAGES)
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            hits[language] += 1
    best = max(range(len(hits)), key=hits.__getitem__)
    second = max(count for at, count in enumerate(hits) if at != best)
    is_clear = hits[best] >= 0.1 * len(words) and hits[best] >= 1.5 * second
    return best + 1 if is_clear else 0
