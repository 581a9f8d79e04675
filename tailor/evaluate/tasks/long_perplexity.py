"""The evaluation task `long_perplexity`: perplexity of long texts for each context length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate import windows
from tailor.evaluate.batches import Computation, EvaluationBatch, Result, Worker
from tailor.evaluate.figures import exponential
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import location_of, texts
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.evaluate.windows import BUCKETS, Windows
from tailor.spec.suite import Decoding
from tailor.spec.tasks.lengths import LongPerplexity

PART = "texts"


@dataclass(frozen=True)
class LongText:
    """A text, and its windows for each context length."""

    location: dict[str, Any]
    windows: list[Windows]


def _read(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        read = [windows.losses(model.scoring, text) for text in batch.inputs]
        model.require_numbers(loss for one in read for loss in one.loss)
        return [asdict(one) for one in read]


def _sizes(inputs: Sequence[Windows], decoding: Decoding) -> Iterator[tuple[int, int]]:
    return ((size, 0) for one in inputs for size in windows.sizes(one))


READ = Computation("read", _read, _sizes)
"""Inputs: `Windows`. Result per item: a `windows.LossByPosition` as a mapping."""


class LongPerplexityEvaluator(TaskEvaluator[LongPerplexity]):
    def preflight(self, rows: FirstRows) -> None:
        list(texts(rows.of(self.spec.data), f"{self.key}.data"))

    def inputs(self, rows: ModelRows) -> TaskInputs:
        found, short = long_texts(self.spec, f"{self.key}.data", rows.tokenizer)
        read = [window for text in found for window in text.windows]
        return TaskInputs(
            found,
            rows.tokenizer,
            lambda model, size: [
                EvaluationBatch(model, PART, READ, (at,), (one,)) for at, one in enumerate(read)
            ],
            locations=[one.location for one in found],
            exceeding=[one.length for one in read],
            short=short,
        )

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        read = collected.grouped(PART, [len(one.windows) for one in inputs.rows])
        figures = {}
        for at, length in enumerate(sorted(self.spec.lengths)):
            loss, tokens = ([sum(text[at][key]) for text in read] for key in ("loss", "tokens"))
            figures[f"perplexity_{length}"] = exponential(loss, tokens)
        rows = [
            (
                {**one.location},
                {
                    str(window.length): {key: sum(own[key]) for key in ("loss", "tokens")}
                    for window, own in zip(one.windows, text, strict=True)
                },
            )
            for one, text in zip(inputs.rows, read, strict=True)
        ]
        return Outcome(figures, "texts.jsonl", rows, data=_by_position([text[-1] for text in read]))

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """For the longest window: the end of each of its parts, and each model's mean loss there (None: no scored token)."""
        longest = max(self.spec.lengths)
        return {
            "positions": {
                "ends": [longest * (at + 1) // BUCKETS for at in range(BUCKETS)],
                "models": {model: outcome.data for model, outcome in outcomes.items()},
            }
        }


def _by_position(read: list[dict[str, Any]]) -> list[float | None]:
    """The mean loss in each part of the longest window; None for a part without a scored token."""
    loss, tokens = (np.sum([text[key] for text in read], axis=0) for key in ("loss", "tokens"))
    return [one / count if count else None for one, count in zip(loss.tolist(), tokens.tolist(), strict=True)]


def long_texts(task: LongPerplexity, key: str, tokenizer: Tokenizer) -> tuple[list[LongText], int]:
    """The texts with at least max(lengths) tokens, and the number of shorter ones.

    DataError when all are shorter, or when `stride` is larger than a window without the tokenizer's prefix.
    """
    found, short, longest = [], 0, max(task.lengths)
    prefix = tuple(tokenizer.prefix)
    room = min(task.lengths) - len(prefix)
    if (task.stride or 1) > room:
        raise DataError(
            f"{key.removesuffix('data')}stride: a window of {min(task.lengths)} tokens starts with {len(prefix)} that the "
            f"tokenizer puts before every text, which leaves fewer than the {task.stride or 1} new tokens of a step",
            hint="lower stride, or raise lengths",
        )
    for row_id, text in texts(task.data, key):
        ids = [*prefix, *tokenizer.encode(text)][: task.tokens_per_text][len(prefix) :]
        if len(prefix) + len(ids) < longest:
            short += 1
            continue
        windows = [
            Windows(ids, length, task.stride or length // 2, task.prefill, prefix)
            for length in sorted(task.lengths)
        ]
        found.append(LongText(location_of(row_id), windows))
    if not found:
        raise DataError(
            f"{key}: all {short} texts are shorter than {longest} tokens, the largest of lengths",
            hint="use longer texts, or reduce lengths",
        )
    return found, short
