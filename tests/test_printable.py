"""Foreign text cannot control the terminal, and stays readable."""

from __future__ import annotations

import json
import unicodedata

from tailor.printable import printable


def test_every_control_and_direction_mark_is_escaped() -> None:
    kept = {"\u200c", "\u200d", "\u00ad"}  # joiners, which scripts and emojis need, and the soft hyphen
    for number in range(0x110000):
        sign = chr(number)
        if unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs") or (
            unicodedata.bidirectional(sign) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        ):
            assert printable(sign).isascii(), hex(number)
            assert printable(sign).isprintable(), hex(number)
        elif sign.isprintable() or sign in kept:
            assert printable(sign) == sign, hex(number)


def test_lines_are_kept_where_they_belong() -> None:
    assert printable("a\n\tb\r\x1b[2J") == r"a\n\tb\r\x1b[2J"
    assert printable("a\n\tb\r\x1b[2J", lines=True) == "a\n\tb\\r\\x1b[2J"


def test_json_keeps_its_meaning() -> None:
    value = {"a\u202e": "\x00\x1b\x7f\x9b\u2066\U000e0041é😀\ud800"}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value
