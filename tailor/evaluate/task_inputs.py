"""What one model computes for a task, and what its batches gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailor.encode.tokenizer import Tokenizer
from tailor.evaluate.batches import EvaluationBatch, Result, generating
from tailor.evaluate.rows import Question

Location = Mapping[str, Any]
"""Where a row comes from, such as its `source` and `row`, from 1."""


class Collected:
    """The results of one model's batches for one task."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, Any]] = {}

    def add(self, batch: EvaluationBatch, result: Result) -> None:
        """Take the result of a batch. Batches come in the order of `TaskInputs.batches`."""
        assert isinstance(result, list)
        self._parts.setdefault(batch.part, {}).update(zip(batch.items, result, strict=True))

    def of(self, part: str) -> dict[int, Any]:
        """Item of the part -> its result."""
        return self._parts.get(part, {})

    def grouped(self, part: str, sizes: Sequence[int]) -> list[list[Any]]:
        """Per row the results of its items, which are numbered through. sizes: items of each row."""
        values, groups, at = self.of(part), [], 0
        for size in sizes:
            groups.append([values[number] for number in range(at, at + size)])
            at += size
        return groups

    def answers(self, part: str, count: int, tokenizer: Tokenizer) -> list[str]:
        """The generated answers as text. An item without a result has none: its prompt was empty."""
        ids = self.of(part)
        return [tokenizer.decode(ids.get(at, []), skip_special_tokens=True).strip() for at in range(count)]


@dataclass(frozen=True, eq=False)
class TaskInputs:
    """What one model computes for a task. Tasks that return the same object share its results."""

    rows: Sequence[Any]
    tokenizer: Tokenizer
    batches: Callable[[str, int], list[EvaluationBatch]]
    """(label of the model, `decoding.batch_size`) -> the batches, always the same ones in the same order."""
    locations: Sequence[Location] = ()
    """Of the rows. All models that are compared must have the same."""
    lengths: Sequence[tuple[Location, int]] = ()
    """(row, tokens that it needs), which must fit into the model's positions."""
    beyond: Sequence[int] = ()
    """Lengths that may lie beyond the model's positions, where it has any there."""
    cut: int = 0
    """Rows that are not evaluated, because `on_long: chunk` cut them."""
    short: int = 0
    """Rows that are not evaluated, because they are too short."""
    collect: Callable[[], Collected] = field(default=Collected)
    """Makes what takes the results."""


def question_inputs(
    part: str, questions: Sequence[Question], tokenizer: Tokenizer, *, cut: int = 0
) -> TaskInputs:
    """Questions to answer, as `decoding` says. `Collected.answers(part, …)` gives the answers."""
    return TaskInputs(
        questions,
        tokenizer,
        lambda model, size: generating(model, part, [one.prompt for one in questions], size),
        locations=[one.place for one in questions],
        lengths=[(one.place, len(one.prompt) + 1) for one in questions],
        cut=cut,
    )
