"""Damaged text: mojibake, replacement and control characters, HTML entities, letters of two scripts in a word."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, Severity, excerpt, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally

_PATTERNS: dict[str, tuple[re.Pattern[str], Severity, str]] = {
    "mojibake": (
        # UTF-8 that was read as Windows-1252 or Latin-1: a lead byte as a letter, then continuation bytes.
        re.compile(
            r"[\u00c2\u00c3][\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2026\u2030"
            r"\u2039\u203a\u20ac\u2122]|\u00e2\u20ac[\x80-\xbf\u0153\u02dc\u2122\u0161\u2013\u201c\u201d\u00a6\u2039\u203a]"
            r"|\u00f0\u0178[\x80-\xbf\u02dc\u2018-\u201d\u0152\u0153\u017d\u0178\u20ac]|\u00ef\u00bb\u00bf"
            r"|[\u00d0\u00d1][\x80-\xbf\u2018-\u201d][\u00d0\u00d1]"
        ),
        "warning",
        "rows with text that was decoded with the wrong encoding, such as Ã© for é",
    ),
    "replacement_characters": (
        re.compile("\ufffd"),
        "warning",
        "rows with the replacement character U+FFFD: text was lost when it was decoded",
    ),
    "control_characters": (
        re.compile(
            "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]"
        ),
        "warning",
        "rows with control characters or invisible marks of the writing direction",
    ),
    "html_entities": (
        re.compile(r"&(?:amp|lt|gt|quot|nbsp|#39|#x27|rsquo|ldquo|rdquo);"),
        "info",
        "rows with HTML entities such as &quot;",
    ),
    "mixed_scripts": (
        re.compile("[A-Za-z]{2}[\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]{2}|[\u0400-\u04ff]{2}[A-Za-z]"),
        "warning",
        "rows with words that mix Latin and Cyrillic letters, which look alike and have other tokens",
    ),
}


class Encoding(Check):
    """Searches all texts of a row, the system message included."""

    def row(self, row: Row, tally: Tally) -> None:
        texts = [*row.texts.prompt, *row.texts.answer]
        texts += [message.get("content") or "" for message in row.messages if message["role"] == "system"]
        seen: set[str] = set()
        for text in texts:
            for kind, (pattern, _, _) in _PATTERNS.items():
                if kind in seen or (text.isascii() and kind in ("mojibake", "mixed_scripts")):
                    continue
                if (match := pattern.search(text)) is not None:
                    seen.add(kind)
                    tally.add(f"encoding/{kind}", row, excerpt(text, match.start()))

    def findings(self, examined: Examined) -> Iterator[Finding]:
        for kind, (_, severity, message) in _PATTERNS.items():
            yield from finding_of(kind, severity, message, examined.found.get(f"encoding/{kind}"))
