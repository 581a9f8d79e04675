"""Which rows have a question: one rule for evaluations and for measurements during training."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from tailor.data.split import Example, Missing, RowId, Split
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError

LOST = Missing.START | Missing.END
"""A row without these tokens has no complete prompt or answer. The passages that `on_long: retrieve` leaves out may lack."""


@dataclass
class Selection:
    """The questions among evaluation rows, and how many rows were left out. Every row is counted once."""

    asked: list[tuple[RowId, int]] = field(default_factory=list)
    """(data row, index of its example). A conversation can have several examples, each with its own question."""
    cut: int = 0
    """Rows that `data.on_long` cut: the start of their prompt or the end of their answer is missing."""
    without_question: int = 0
    """Rows without a question before an answer that could be a reference."""

    @property
    def rows(self) -> int:
        """Number of rows that are asked."""
        return len({row for row, _ in self.asked})


def select(
    split: Split, tokenizer: Tokenizer, *, rows: int | None = None, questions: int | None = None
) -> Selection:
    """The questions of the first `rows` rows, at most `questions` of them. Rejected and undesirable answers are no references."""
    found = Selection()
    for row, indices in itertools.islice(split.rows(), rows):
        if questions is not None and len(found.asked) >= questions:
            break
        asked = [at for at in indices if split.is_positive[at] and has_question(split.example(at), tokenizer)]
        if any(split.missing[at] & LOST for at in indices):
            found.cut += 1
        elif asked:
            found.asked += [(row, at) for at in asked]
        else:
            found.without_question += 1
    if questions is not None:
        del found.asked[questions:]
    return found


def has_question(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether the last answer is preceded by anything but the BOS and prefix tokens. A row of plain text has no question."""
    start = int(example.spans[-1][0])
    return not {int(token) for token in example.input_ids[:start]} <= {tokenizer.bos_id, *tokenizer.prefix}


def no_question(key: str = "", cut: int = 0, instead: str = "use only the task perplexity") -> DataError:
    """The error for evaluation rows without a question. key: prefix of the message. cut: rows that `on_long` cut.

    instead: what else may be done about it.
    """
    if cut:
        return DataError(
            f"{key}no evaluation row can be asked: {cut:,} rows are longer than max_length and were cut, so that their "
            "prompt or their answer is not complete",
            hint=f"raise max_length, or {instead}",
        )
    return DataError(
        f"{key}no evaluation row has a question before its answer, so there is nothing to generate",
        hint=f"evaluate on conversations or prompt/response rows with train_on: assistant, or {instead}",
    )
