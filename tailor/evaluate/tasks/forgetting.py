"""The evaluation task `forgetting`: loss and perplexity of general texts, which the training did not aim at.

The built-in texts were written for this purpose, so that no model has seen them in its training data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tailor
from tailor.data.split import RowId
from tailor.errors import DataError
from tailor.evaluate.figures import from_losses
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import location_of, texts
from tailor.evaluate.rows import Scored
from tailor.evaluate.task_inputs import Collected, TaskInputs, scored_inputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.spec.tasks.forgetting import Forgetting

PART = "general"
BUILT_IN = "general_texts.txt"
_KEYS = ("loss", "hits", "tokens")


@dataclass(frozen=True)
class GeneralText:
    """A text as one sequence, of which all tokens but the first are scored."""

    location: dict[str, Any]
    sequences: list[Scored]


class ForgettingEvaluator(TaskEvaluator[Forgetting]):
    def preflight(self, rows: FirstRows) -> None:
        if self.spec.data is not None:
            list(texts(rows.of(self.spec.data), f"{self.key}.data"))

    def inputs(self, rows: ModelRows) -> TaskInputs:
        length = min(self.spec.max_length, rows.model.positions() or self.spec.max_length)
        found = []
        for location, text in self._texts():
            ids = rows.tokenizer.encode_prompt(text)[:length]
            if len(ids) > 1:
                found.append(GeneralText(location, [Scored(ids, [(1, len(ids))])]))
        if not found:
            raise DataError(f"{self.key}.data: no text has two tokens", hint="use longer texts")
        return scored_inputs(PART, found, rows.tokenizer)

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        losses = [one for (one,) in collected.grouped(PART, [1] * len(inputs.rows))]
        figures = from_losses(*([one[key] for one in losses] for key in _KEYS))
        rows = [({**row.location}, dict(own)) for row, own in zip(inputs.rows, losses, strict=True)]
        named = {f"general_{name}": figures[name] for name in ("loss", "perplexity")}
        return Outcome(named, "general.jsonl", rows)

    def _texts(self) -> Iterator[tuple[dict[str, Any], str]]:
        """(location, text) of each text."""
        if self.spec.data is not None:
            for row_id, text in texts(self.spec.data, f"{self.key}.data"):
                yield location_of(row_id), text
            return
        for number, text in enumerate(built_in(), 1):
            yield RowId(0, BUILT_IN, number)._asdict(), text


def built_in() -> list[str]:
    """The general texts that come with the package."""
    file = Path(tailor.__file__).parent / "evaluate" / BUILT_IN
    return file.read_text(encoding="utf-8").strip().split("\n\n")
