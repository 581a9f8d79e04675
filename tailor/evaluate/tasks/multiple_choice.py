"""The evaluation task `multiple_choice`: whether the correct choice has the highest likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tailor.encode.examples import Encoder
from tailor.encode.records import Chat, Completion, RowError
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import DataError
from tailor.evaluate.figures import mean
from tailor.evaluate.generation import before_stop
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import (
    conversation,
    last_turn,
    list_of,
    location_of,
    plain_text,
    read_rows,
    text_of,
)
from tailor.evaluate.rows import Scored
from tailor.evaluate.task_inputs import Collected, TaskInputs, scored_inputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.spec.tasks.questions import MultipleChoice
from tailor.spec.tasks.rows import Questions

PART = "choices"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """A question and its choices. Sequence n is the question followed by choice n."""

    location: dict[str, Any]
    question: str
    choices: list[str]
    answer: int
    """Index of the correct choice, from 0."""
    sequences: list[Scored]


class MultipleChoiceEvaluator(TaskEvaluator[MultipleChoice]):
    def preflight(self, rows: FirstRows) -> None:
        choices(rows.of(self.spec.data), f"{self.key}.data", rows.tokenizer, plain=rows.plain)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        found = choices(self.spec.data, f"{self.key}.data", rows.tokenizer, plain=rows.plain)
        return scored_inputs(PART, found, rows.tokenizer)

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        scores, rows = [], []
        losses = collected.grouped(PART, [len(one.sequences) for one in inputs.rows])
        for row, choice in zip(losses, inputs.rows, strict=True):
            plain = [-one["loss"] for one in row]
            by_length = [value / len(text) for value, text in zip(plain, choice.choices, strict=True)]
            score = {
                "accuracy": float(plain.index(max(plain)) == choice.answer),
                "accuracy_norm": float(by_length.index(max(by_length)) == choice.answer),
            }
            scores.append(score)
            shared = {
                **choice.location,
                "question": choice.question,
                "choices": choice.choices,
                "right": choice.answer,
            }
            rows.append((shared, {"loglikelihoods": plain, **score}))
        return Outcome(
            {name: mean([one[name] for one in scores]) for name in scores[0]}, "choices.jsonl", rows
        )


def choices(data: Questions, key: str, tokenizer: Tokenizer, *, plain: bool) -> list[Choice]:
    """The rows of a multiple-choice set. Each choice is tokenized as an answer in training, without the stop token.

    DataError for a row that cannot be used.
    """
    rules = None if plain else turn_rules(tokenizer)
    encoder = Encoder(tokenizer, rules, train_on="last_assistant", max_length=1 << 30, on_long="drop")
    ends = [*(rules.end_ids if rules else ()), *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])]
    found = []
    for row_id, row in read_rows(data, key, ("question", "choices", "answer")):
        turns = conversation(row["question"], row_id)
        texts = [text_of(value, "choices", row_id) for value in list_of(row["choices"], "choices", row_id)]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise DataError(f"{row_id}: `choices` must be two or more different texts")
        right = _index(row["answer"], texts, row_id)
        records: list[Any] = [_with_answer(turns, text, row_id, plain=plain) for text in texts]
        sequences = []
        for text, encoded in zip(texts, encoder.encode(records), strict=True):
            if isinstance(encoded, RowError):
                raise DataError(f"{row_id}: {encoded.detail or encoded.reason}")
            example = encoded[-1]
            start, stop = example.spans[-1]
            ids = [int(token) for token in example.input_ids]
            stop = start + len(before_stop(ids[start:stop], ends))
            if stop <= max(start, 1):
                raise DataError(f"{row_id}: the choice {text!r} has no tokens to score")
            sequences.append(Scored(ids[:stop], [(start, stop)]))
        found.append(Choice(location_of(row_id), last_turn(turns), texts, right, sequences))
    return found


def _with_answer(turns: list[dict[str, Any]], text: str, row_id: str, *, plain: bool) -> Chat | Completion:
    if not plain:
        return Chat([*turns, {"role": "assistant", "content": text}])
    question = plain_text(turns, row_id)
    return Completion(question, text if question[-1].isspace() else f" {text}")


def _index(value: Any, texts: list[str], row_id: str) -> int:
    """The index of the correct choice. value: an index from 0, the text of a choice, or its letter."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    if isinstance(value, str) and value in texts:
        return texts.index(value)
    if isinstance(value, str) and len(value) == 1 and value in LETTERS[: len(texts)]:
        return LETTERS.index(value)
    last = len(texts) - 1
    raise DataError(
        f"{row_id}: `answer` is {value!r}; it must be an index from 0 to {last}, a letter from A to "
        f"{LETTERS[min(last, 25)]}, or one of the choices"
    )
