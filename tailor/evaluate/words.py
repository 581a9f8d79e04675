"""Word tokenization for scores that compare words. Chinese, Japanese and Korean text is split into characters."""

from __future__ import annotations

import re
import string
import unicodedata

_CJK = (
    "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_CHARACTER = re.compile(f"[{_CJK}]")
_ASCII = re.compile(r"[a-z0-9]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?<![^\W_])[-−]?\d+(?:[.,]\d+)*")
_IN_NUMBER = str.maketrans({"−": "-"})


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; CJK characters one by one. For ASCII text the same as rouge-score's tokenizer."""
    text = text.lower()
    if text.isascii():
        return _ASCII.findall(text)
    return _spaced("".join(char if _is_word(char) else " " for char in unicodedata.normalize("NFC", text)))


def squad_words(text: str) -> list[str]:
    """Words normalized as in SQuAD's evaluation script: lower case, no punctuation, no articles; CJK by characters."""
    kept = "".join(char for char in text.lower() if not _is_punctuation(char))
    return _spaced(_ARTICLES.sub(" ", kept))


def fact_words(text: str) -> list[str]:
    """Words for finding a fact in an answer. A number is one word, with its sign and its decimals."""
    text = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = []
    end = 0
    for number in _NUMBER.finditer(text):
        found += words(text[end : number.start()])
        found.append(number[0].translate(_IN_NUMBER))
        end = number.end()
    return found + words(text[end:])


def contains(answer: list[str], fact: list[str]) -> bool:
    """Whether the answer has the words of the fact one after the other."""
    return any(answer[at : at + len(fact)] == fact for at in range(len(answer) - len(fact) + 1))


def _spaced(text: str) -> list[str]:
    return _CHARACTER.sub(lambda found: f" {found[0]} ", text).split()


def _is_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNM"


def _is_punctuation(char: str) -> bool:
    # SQuAD removes string.punctuation, which has signs that Unicode classes as symbols ($, +, <).
    return char in string.punctuation if char.isascii() else unicodedata.category(char)[0] == "P"
