"""Whether the likeliest of the given answers is the right one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tailor.encode.examples import Encoder
from tailor.encode.records import Chat, Completion, RowError
from tailor.encode.tokenizer import Tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import DataError
from tailor.evaluate.batches import scoring
from tailor.evaluate.figures import mean
from tailor.evaluate.generation import before_stop
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.own_rows import (
    conversation,
    last_turn,
    list_of,
    location,
    plain_text,
    read_rows,
    text_of,
)
from tailor.evaluate.rows import Scored
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import FirstRows, Outcome, TaskEvaluator
from tailor.spec.tasks.questions import MultipleChoice
from tailor.spec.tasks.rows import Questions

PART = "choices"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """A question with the answers to choose from; sequence n is the question followed by answer n."""

    place: dict[str, Any]
    question: str
    choices: list[str]
    answer: int
    """Index of the right one, from 0."""
    sequences: list[Scored]


class MultipleChoiceEvaluator(TaskEvaluator[MultipleChoice]):
    def preflight(self, rows: FirstRows) -> None:
        choices(rows.of(self.spec.data), f"{self.key}.data", rows.tokenizer, plain=rows.plain)

    def inputs(self, rows: ModelRows) -> TaskInputs:
        found = choices(self.spec.data, f"{self.key}.data", rows.tokenizer, plain=rows.plain)
        sequences = [sequence for choice in found for sequence in choice.sequences]
        return TaskInputs(
            found,
            rows.tokenizer,
            lambda model, size: scoring(model, PART, sequences, size),
            locations=[one.place for one in found],
            lengths=[(one.place, len(sequence.ids)) for one in found for sequence in one.sequences],
        )

    def judge(self, inputs: TaskInputs, found: Collected) -> Outcome:
        scores, rows = [], []
        losses = found.grouped(PART, [len(one.sequences) for one in inputs.rows])
        for row, choice in zip(losses, inputs.rows, strict=True):
            plain = [-one["loss"] for one in row]
            by_length = [value / len(text) for value, text in zip(plain, choice.choices, strict=True)]
            score = {
                "accuracy": float(plain.index(max(plain)) == choice.answer),
                "accuracy_norm": float(by_length.index(max(by_length)) == choice.answer),
            }
            scores.append(score)
            shared = {
                **choice.place,
                "question": choice.question,
                "choices": choice.choices,
                "right": choice.answer,
            }
            rows.append((shared, {"loglikelihoods": plain, **score}))
        return Outcome(
            {name: mean([one[name] for one in scores]) for name in scores[0]}, "choices.jsonl", rows
        )


def choices(data: Questions, where: str, tokenizer: Tokenizer, *, plain: bool) -> list[Choice]:
    """The rows of a multiple-choice set, each answer tokenized as a trained answer would be, without its stop."""
    rules = None if plain else turn_rules(tokenizer)
    encoder = Encoder(tokenizer, rules, train_on="last_assistant", max_length=1 << 30, on_long="drop")
    ends = [*(rules.end_ids if rules else ()), *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])]
    found = []
    for place, row in read_rows(data, where, ("question", "choices", "answer")):
        turns = conversation(row["question"], place)
        texts = [text_of(value, "choices", place) for value in list_of(row["choices"], "choices", place)]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise DataError(f"{place}: `choices` must be two texts or more, each another")
        right = _index(row["answer"], texts, place)
        records: list[Any] = [_with_answer(turns, text, place, plain=plain) for text in texts]
        sequences = []
        for text, encoded in zip(texts, encoder.encode(records), strict=True):
            if isinstance(encoded, RowError):
                raise DataError(f"{place}: {encoded.detail or encoded.reason}")
            example = encoded[-1]
            start, stop = example.spans[-1]
            ids = [int(token) for token in example.input_ids]
            stop = start + len(before_stop(ids[start:stop], ends))
            if stop <= max(start, 1):
                raise DataError(f"{place}: the answer {text!r} has no tokens to score")
            sequences.append(Scored(ids[:stop], [(start, stop)]))
        found.append(Choice(location(place), last_turn(turns), texts, right, sequences))
    return found


def _with_answer(turns: list[dict[str, Any]], text: str, place: str, *, plain: bool) -> Chat | Completion:
    if not plain:
        return Chat([*turns, {"role": "assistant", "content": text}])
    question = plain_text(turns, place)
    return Completion(question, text if question[-1].isspace() else f" {text}")


def _index(value: Any, texts: list[str], place: str) -> int:
    """The right answer's index: an index from 0, the answer's text, or its letter."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    if isinstance(value, str) and value in texts:
        return texts.index(value)
    if isinstance(value, str) and len(value) == 1 and value in LETTERS[: len(texts)]:
        return LETTERS.index(value)
    last = len(texts) - 1
    raise DataError(
        f"{place}: `answer` is {value!r}; it must be an index from 0 to {last}, a letter from A to "
        f"{LETTERS[min(last, 25)]}, or one of the choices"
    )
