"""The evaluation task `extracted_answer`: a number, a choice or a match of a regex in the answer, against the reference's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from tailor.errors import DataError
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks.answers import AnswerEvaluator, Measured, Scores
from tailor.evaluate.words import words
from tailor.spec.rules.tasks.extracted_answer import GROUP
from tailor.spec.tasks.extracted_answer import ExtractedAnswer

_NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-−])?"  # a minus sign, not the hyphen of 10-3
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\w))?"
    r"|(?:(?<![\w)\]])[-−])?(?<![\d.])\.\d+"
)
_LETTER = "A-Za-z0-9_À-ɏЀ-ӿ"
"""Characters that continue a word. Chinese and Japanese text has no spaces around a choice."""
_MARKS = r"[\s*_(\[\"'`]*"
"""What may be before a choice."""


class ExtractedAnswerEvaluator(AnswerEvaluator[ExtractedAnswer]):
    def score(self, answer: str, reference: str) -> Scores:
        expected = self.extract(reference)
        if expected is None:
            return {"extracted_accuracy": None, "extracted_share": None}
        found = self.extract(answer)
        same = found is not None and canonical(found) == canonical(expected)
        return {"extracted_accuracy": float(same), "extracted_share": float(found is not None)}

    def measure(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Measured:
        measured = super().measure(questions, answers)
        what = {"number": "number", "choice": "choice", "regex": "match of the regex"}[self.spec.extract]
        without = sum(self.extract(str(one.reference)) is None for one in questions)
        if not measured.figures:
            raise DataError(
                f"{self.key}: extracted_answer: none of the {len(questions):,} references has a {what}",
                hint="extract something else, or use exact_match",
            )
        missing = sum(self.extract(answer) is None for samples in answers for answer in samples)
        notes = [
            *(
                [f"extracted_answer: {without:,} rows are left out: their reference has no {what}"]
                * bool(without)
            ),
            *([f"extracted_answer: {missing:,} answers have no {what} and count as wrong"] * bool(missing)),
        ]
        return Measured(measured.figures, measured.rows, notes)

    def extract(self, text: str) -> str | None:
        """The part of an answer or reference that is compared. None if it has none."""
        spec = self.spec
        if spec.extract == "number":
            return last_number(text)
        if spec.extract == "choice":
            return chosen(text, spec.choices)
        assert spec.regex is not None
        found = [match[GROUP] for match in re.finditer(spec.regex, text) if match[GROUP] is not None]
        return found[-1] if found else None


def last_number(text: str) -> str | None:
    """The last number of a text: without the commas between thousands, and with its sign. None if there is none."""
    numbers = [match[0] for match in _NUMBER.finditer(text)]
    return numbers[-1].replace(",", "").replace("−", "-") if numbers else None


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text makes: at its start, else after the last "answer is" or "answer:", else the last one.

    Words are found in any case, single letters only as they are written: "a" is an article.
    """
    one = "|".join(
        re.escape(choice) if len(choice) == 1 else f"(?i:{re.escape(choice)})"
        for choice in sorted(choices, key=len, reverse=True)
    )
    word = rf"(?<![{_LETTER}])(?P<choice>{one})(?![{_LETTER}])"
    # At the start a letter needs a mark behind it: "A dog …" chooses nothing.
    start = re.match(rf"{_MARKS}{word}{_MARKS}(?:[).:,;\]\n*]|$)", text.strip())
    if start is not None:
        return start["choice"]
    announced = list(re.finditer(rf"(?i:answer)(?i:\s+is)?\s*[:=]?{_MARKS}(?:\(|\[)?{word}", text))
    found = announced or list(re.finditer(word, text))
    return found[-1]["choice"] if found else None


def canonical(text: str) -> object:
    """A value that is equal for equal answers: numbers by value, other texts by their words."""
    plain = text.strip().replace("−", "-")
    if _NUMBER.fullmatch(plain):
        try:
            return Decimal(plain.replace(",", ""))
        except InvalidOperation:
            return plain
    return words(text) or plain
