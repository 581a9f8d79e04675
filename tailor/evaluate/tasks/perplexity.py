"""The evaluation task `perplexity`: loss, perplexity and token accuracy of the evaluation rows' supervised tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tailor.data.split import Split
from tailor.evaluate.figures import from_losses
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.rows import Scored
from tailor.evaluate.task_inputs import Collected, TaskInputs, scored_inputs
from tailor.evaluate.tasks.base import Outcome, TaskEvaluator
from tailor.spec.tasks.perplexity import Perplexity

PART = "passages"
_KEYS = ("loss", "hits", "tokens")


@dataclass(frozen=True)
class Passage:
    """An evaluation row, as one sequence or several."""

    location: dict[str, Any]
    sequences: list[Scored]


class PerplexityEvaluator(TaskEvaluator[Perplexity]):
    def inputs(self, rows: ModelRows) -> TaskInputs:
        found = passages(rows.split, rows.limit)
        return scored_inputs(PART, found, rows.tokenizer, used=len(found))

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        losses = collected.grouped(PART, [len(one.sequences) for one in inputs.rows])
        sums = [{key: sum(one[key] for one in row) for key in _KEYS} for row in losses]
        rows = [({**one.location}, own) for one, own in zip(inputs.rows, sums, strict=True)]
        return Outcome(from_losses(*([row[key] for row in sums] for key in _KEYS)), "passages.jsonl", rows)


def passages(split: Split, limit: int | None) -> list[Passage]:
    """The first `limit` rows. A row that was split into several examples is one passage."""
    found = []
    for row, indexes in itertools.islice(split.rows(), limit):
        examples = [split.example(index) for index in indexes]
        sequences = [
            Scored(one.input_ids.tolist(), [(int(a), int(b)) for a, b in one.spans]) for one in examples
        ]
        found.append(Passage(row._asdict(), sequences))
    return found
