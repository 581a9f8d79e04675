"""Escapes the characters of foreign text that a terminal obeys or that hide text from the reader.

Texts of models, rows, templates, file names and error messages may contain them.
"""

from __future__ import annotations

import re

# Control characters, marks that change the direction of text, invisible characters and lone surrogates. Two joiners
# (U+200C, U+200D) stay: many scripts and emojis need them.
_UNSAFE = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_A_LINE = re.compile(f"[{_UNSAFE}]")
_IN_LINES = re.compile(rf"(?![\n\t])[{_UNSAFE}]")


def printable(text: str, *, lines: bool = False) -> str:
    """The text with unsafe characters as escapes, such as `\\x1b` and `\\u202e`. lines: keep line breaks and tabs.

    Inside a JSON string the result has the same meaning, because raw JSON has no characters below U+0020.
    """
    return (_IN_LINES if lines else _IN_A_LINE).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    sign = match[0]
    if sign < " ":
        return ascii(sign)[1:-1]
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(rf"\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
