"""Needle-in-a-haystack prompts: a value hidden at an exact depth in a prompt of exact length, built from token ids."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.evaluate import generation
from tailor.evaluate.batches import Computation, EvaluationBatch, Result, Worker
from tailor.evaluate.figures import mean
from tailor.evaluate.model_rows import ModelRows
from tailor.evaluate.task_inputs import Collected, TaskInputs
from tailor.evaluate.tasks.base import Outcome, TaskEvaluator
from tailor.spec.suite import Decoding
from tailor.spec.tasks.lengths import Grid

S = TypeVar("S", bound=Grid)
Ids = list[int]
ANSWER_ROOM = 24
"""New tokens allowed for an answer, in addition to the tokens of the value."""
_MARK = "\ue000"
"""Marks the position of the haystack in a rendered user turn: a private-use character that no template writes."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt and the value that it hides.

    ids: the prompt's token ids. start: index of the first token of the needle (the sentence with the value).
    """

    location: dict[str, Any]
    """`length` in tokens, `depth` from 0 to 1, and `sample` from 1."""
    ids: Ids
    value: str
    start: int
    max_new_tokens: int
    prefill: int | None


def _find(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        return generation.generate(
            model.loaded.model,
            [one.ids for one in batch.inputs],
            max_new_tokens=max(one.max_new_tokens for one in batch.inputs),
            exceed_positions=True,
            prefill=batch.inputs[0].prefill,
            stop_ids=model.stop_ids,
            batch_size=len(batch.inputs),
            pad_id=model.loaded.pad_id,
        )


def _sizes(inputs: Sequence[NeedlePrompt], decoding: Decoding) -> Iterator[tuple[int, int]]:
    max_new_tokens = max(one.max_new_tokens for one in inputs)
    return ((len(one.ids), max_new_tokens) for one in inputs)


FIND = Computation("find", _find, _sizes)
"""Inputs: `NeedlePrompt`. Result per item: the answer's token ids, decoded greedily."""


class HiddenValueEvaluator(TaskEvaluator[S]):
    """Share of hidden values found: in total, by length, and by length and depth. A subclass provides the haystack."""

    @abstractmethod
    def excerpt(self, hay: Ids, length: int, draw: random.Random) -> Ids:
        """`length` consecutive tokens of the haystack."""

    @abstractmethod
    def haystack(self) -> list[str]:
        """The texts of the haystack."""

    def inputs(self, rows: ModelRows) -> TaskInputs:
        return self.inputs_of(self.prompts(self.haystack(), rows.tokenizer, plain=rows.plain), rows.tokenizer)

    def inputs_of(self, found: list[NeedlePrompt], tokenizer: Tokenizer) -> TaskInputs:
        return TaskInputs(
            found,
            tokenizer,
            lambda model, size: needle_batches(model, self.spec.name, found, size),
            locations=[one.location for one in found],
            exceeding=[one.location["length"] for one in found],
        )

    def prompts(self, haystack: Sequence[str], tokenizer: Tokenizer, *, plain: bool) -> list[NeedlePrompt]:
        """Every prompt of the grid. plain: without a chat template.

        DataError when a length is too short for the needle and the question.
        """
        task = self.spec
        before, after = _frame(task, tokenizer, plain)
        hay = [token for text in haystack for token in tokenizer.encode(text)]
        found = []
        for length in sorted(task.lengths):
            for depth in sorted(task.depths):
                for sample in range(1, task.samples + 1):
                    # Seeded by its position in the grid: adding lengths or samples changes no other prompt.
                    draw = random.Random(f"{task.seed}/{length}/{depth:g}/{sample}")
                    value = str(draw.randrange(10 ** (task.digits - 1), 10**task.digits))
                    needle = tokenizer.encode(task.needle.replace("{value}", value))
                    room = length - len(before) - len(needle) - len(after)
                    if room < 0:
                        raise DataError(
                            f"{task.name}: lengths: {length} tokens are too few for the needle and the question, which "
                            f"need {length - room}",
                            hint="increase the lengths, or shorten needle and question",
                        )
                    around = self.excerpt(hay, room, draw)
                    at = round(depth * room)
                    prompt = [*before, *around[:at], *needle, *around[at:], *after]
                    assert len(prompt) == length
                    max_new_tokens = len(tokenizer.encode(value)) + ANSWER_ROOM
                    location = {"length": length, "depth": depth, "sample": sample}
                    found.append(
                        NeedlePrompt(location, prompt, value, len(before) + at, max_new_tokens, task.prefill)
                    )
        return found

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        name, prompts = self.spec.name, inputs.rows
        answers = collected.answers(name, len(prompts), inputs.tokenizer)
        shares = [float(is_found(answer, one.value)) for answer, one in zip(answers, prompts, strict=True)]
        figures = {name: mean(shares)}
        cells: dict[tuple[int, float], list[float]] = {}
        for share, one in zip(shares, prompts, strict=True):
            cells.setdefault((one.location["length"], one.location["depth"]), []).append(share)
        lengths, depths = (sorted({key[at] for key in cells}) for at in (0, 1))
        for length in lengths:
            own = [
                share for share, one in zip(shares, prompts, strict=True) if one.location["length"] == length
            ]
            figures[f"{name}_{length}"] = mean(own)
        rows = [
            ({**one.location, "value": one.value, "start": one.start}, {"answer": answer, "found": share})
            for one, answer, share in zip(prompts, answers, shares, strict=True)
        ]
        grid = [[sum(cells[at, depth]) / len(cells[at, depth]) for depth in depths] for at in lengths]
        data = {"lengths": lengths, "depths": depths, "shares": grid}
        return Outcome(figures, f"{name}.jsonl", rows, data=data)

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """The grid: lengths, depths, and for each model the shares found, [length][depth]."""
        first = next(iter(outcomes.values())).data
        models = {model: outcome.data["shares"] for model, outcome in outcomes.items()}
        grid = {"lengths": first["lengths"], "depths": first["depths"], "models": models}
        return {"grids": {self.spec.name: grid}}


def is_found(answer: str, value: str) -> bool:
    """Whether the first number of an answer is the value."""
    number = _NUMBER.search(answer)
    return number is not None and number[0] == value


def _frame(task: Grid, tokenizer: Tokenizer, plain: bool) -> tuple[Ids, Ids]:
    """The tokens before and after the haystack. DataError when the chat template drops the user's text."""
    if plain:
        return list(tokenizer.prefix), tokenizer.encode(task.question)
    turn = [{"role": "user", "content": _MARK + task.question}]
    head, found, tail = tokenizer.render(turn, None, add_generation_prompt=True).partition(_MARK)
    if not found:
        raise DataError(f"{task.name}: the chat template does not render the content of a user message")
    return tokenizer.encode(head), tokenizer.encode(tail)


def needle_batches(
    model: str, part: str, prompts: Sequence[NeedlePrompt], batch_size: int
) -> list[EvaluationBatch]:
    """Batches that answer needle prompts."""
    return [
        EvaluationBatch(model, part, FIND, tuple(chosen), tuple(prompts[at] for at in chosen))
        for chosen in by_length(prompts, batch_size)
    ]


def by_length(items: Sequence[NeedlePrompt], batch_size: int) -> Iterator[list[int]]:
    """The indexes of the prompts of each batch. A batch has prompts of one length, so nothing is padded."""
    batch: list[int] = []
    for at, item in enumerate(items):
        if batch and (len(batch) == batch_size or len(items[batch[0]].ids) != len(item.ids)):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
