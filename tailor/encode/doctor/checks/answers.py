"""Answers that stop before their end."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from tailor.encode.doctor.checks.base import Check
from tailor.encode.doctor.finding import Finding, excerpt, finding_of
from tailor.encode.doctor.rows import Examined, Row, Tally

_WORDS = 8
"""Shorter answers need no end of a sentence."""
_LONG = 20
_RARE = 0.1
"""Answers that end inside a sentence are reported if at most this share of the source's answers do."""
_LIMIT = 64
"""Shortest length limit that is looked for, in tokens."""
_OPEN_END = re.compile(
    r"[,(\[{–—-]$|\s(?:the|an?|and|or|of|to|in|with|for|by|is|are|was|that|which|from|as|but|because|its|their|your)$",
    re.IGNORECASE,
)


class Truncated(Check):
    """Signs of a cut: an open code block, a last word that no sentence ends with, and many answers of the largest length."""

    def row(self, row: Row, tally: Tally) -> None:
        is_long = False
        for answer in row.answers:
            text = answer.rstrip()
            words = text.count(" ") + 1
            if text.count("```") % 2:
                tally.add("truncated", row, "open code block: " + _end(text))
            elif words >= _WORDS and _OPEN_END.search(text[-40:]):
                tally.add("truncated", row, _end(text))
            elif words >= _LONG:
                is_long = True
                if _is_inside_sentence(text):
                    tally.add(f"unfinished/{row.source}", row, _end(text))
        tally.put("long_answer", is_long)
        last = row.examples[0].spans[-1] if row.examples and row.examples[0].spans and row.answers else (0, 0)
        tally.put("answer_tokens", last[1] - last[0])

    def findings(self, examined: Examined) -> Iterator[Finding]:
        yield from finding_of(
            "truncated_answers",
            "warning",
            "answers that stop before their end",
            examined.found.get("truncated"),
        )
        for source, name in enumerate(examined.sources):
            found = examined.found.get(f"unfinished/{source}")
            own = examined.columns["source"] == source
            answers = int(examined.columns["long_answer"][own].sum())
            if found is not None and found.count <= _RARE * answers:
                message = f"long answers of {name} that end without punctuation, among {answers:,}"
                yield from finding_of("unfinished_sentences", "info", message, found)
        for name, rows in examined.by_source(examined.columns["answer_tokens"] >= _LIMIT):
            yield from _at_limit(examined, name, rows)


def _at_limit(examined: Examined, name: str, rows: np.ndarray) -> list[Finding]:
    """Answers of exactly the largest length, when they are many more than slightly shorter ones."""
    lengths = examined.columns["answer_tokens"][rows]
    longest = int(lengths.max())
    top = rows[lengths == longest]
    below = int(((lengths >= 0.9 * longest) & (lengths < longest)).sum())
    if len(top) < 5 or len(top) <= 3 * below:
        return []
    message = (
        f"answers of {name} that have exactly the largest length, {longest} tokens: a length limit cut them"
    )
    return finding_of("truncated_answers", "warning", message, examined.named(top))


def _is_inside_sentence(text: str) -> bool:
    """Whether a text ends with a letter of a sentence; headings and list items need no full stop."""
    line = text.rsplit("\n", 1)[-1].strip()
    return text[-1].isalpha() and line.count(" ") >= 6 and not re.match(r"[-*•#|>\d]", line)


def _end(text: str) -> str:
    return excerpt(text[-60:])
