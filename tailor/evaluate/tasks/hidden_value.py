"""Prompts that hide a value: of exact length, with the value at an exact depth, built from token ids."""

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
from tailor.spec.tasks.lengths import Grid

S = TypeVar("S", bound=Grid)
Ids = list[int]
ANSWER_ROOM = 24
"""Tokens that an answer may have beside the value's own."""
_MARK = "\ue000"
"""Stands where the haystack goes, in a rendered turn; a private character that no template writes."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Hunt:
    """A prompt and the value that it hides. start: place of the hiding sentence's first token."""

    place: dict[str, Any]
    """`length`, `depth` and `sample`, from 1."""
    prompt: Ids
    value: str
    start: int
    max_new_tokens: int
    prefill: int | None


def _find(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        return generation.generate(
            model.loaded.model,
            [hunt.prompt for hunt in batch.inputs],
            max_new_tokens=max(hunt.max_new_tokens for hunt in batch.inputs),
            beyond=True,
            prefill=batch.inputs[0].prefill,
            stop_ids=model.stop_ids,
            batch_size=len(batch.inputs),
            pad_id=model.loaded.pad_id,
        )


FIND = Computation("find", _find)
"""Inputs: `Hunt`. Per item the answer's token ids."""


class HiddenValueEvaluator(TaskEvaluator[S]):
    """Shares of values found, in all, by length, and by length and depth. A subclass has the haystack."""

    @abstractmethod
    def stretch(self, hay: Ids, room: int, draw: random.Random) -> Ids:
        """`room` tokens of the haystack."""

    @abstractmethod
    def haystack(self) -> list[str]:
        """Its texts."""

    def inputs(self, rows: ModelRows) -> TaskInputs:
        return self.inputs_of(self.hunts(self.haystack(), rows.tokenizer, plain=rows.plain), rows.tokenizer)

    def inputs_of(self, found: list[Hunt], tokenizer: Tokenizer) -> TaskInputs:
        return TaskInputs(
            found,
            tokenizer,
            lambda model, size: finding(model, self.spec.name, found, size),
            locations=[one.place for one in found],
            beyond=[one.place["length"] for one in found],
        )

    def hunts(self, haystack: Sequence[str], tokenizer: Tokenizer, *, plain: bool) -> list[Hunt]:
        """Every prompt of the grid. `plain`: without a chat template. DataError where a length has no room."""
        task = self.spec
        before, after = _around(task, tokenizer, plain)
        hay = [token for text in haystack for token in tokenizer.encode(text)]
        found = []
        for length in sorted(task.lengths):
            for depth in sorted(task.depths):
                for sample in range(1, task.samples + 1):
                    # Seeded by its place alone, so that more lengths or samples change no other prompt.
                    draw = random.Random(f"{task.seed}/{length}/{depth:g}/{sample}")
                    value = str(draw.randrange(10 ** (task.digits - 1), 10**task.digits))
                    needle = tokenizer.encode(task.needle.replace("{value}", value))
                    room = length - len(before) - len(needle) - len(after)
                    if room < 0:
                        raise DataError(
                            f"{task.name}: {length} tokens have no room for the sentence that hides the value and the "
                            f"question, which take {length - room}",
                            hint="give longer lengths, or a shorter needle and question",
                        )
                    around = self.stretch(hay, room, draw)
                    at = round(depth * room)
                    prompt = [*before, *around[:at], *needle, *around[at:], *after]
                    assert len(prompt) == length
                    most = len(tokenizer.encode(value)) + ANSWER_ROOM
                    place = {"length": length, "depth": depth, "sample": sample}
                    found.append(Hunt(place, prompt, value, len(before) + at, most, task.prefill))
        return found

    def judge(self, inputs: TaskInputs, found: Collected) -> Outcome:
        name, asked = self.spec.name, inputs.rows
        answers = found.answers(name, len(asked), inputs.tokenizer)
        shares = [float(finds(answer, hunt.value)) for answer, hunt in zip(answers, asked, strict=True)]
        figures = {name: mean(shares)}
        cells: dict[tuple[int, float], list[float]] = {}
        for share, hunt in zip(shares, asked, strict=True):
            cells.setdefault((hunt.place["length"], hunt.place["depth"]), []).append(share)
        lengths, depths = (sorted({key[at] for key in cells}) for at in (0, 1))
        for length in lengths:
            own = [share for share, hunt in zip(shares, asked, strict=True) if hunt.place["length"] == length]
            figures[f"{name}_{length}"] = mean(own)
        rows = [
            ({**one.place, "value": one.value, "start": one.start}, {"answer": answer, "found": share})
            for one, answer, share in zip(asked, answers, shares, strict=True)
        ]
        grid = [[sum(cells[at, depth]) / len(cells[at, depth]) for depth in depths] for at in lengths]
        data = {"lengths": lengths, "depths": depths, "shares": grid}
        return Outcome(figures, f"{name}.jsonl", rows, data=data)

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """Its lengths and depths, and per model the shares found, [length][depth]."""
        first = next(iter(outcomes.values())).data
        models = {model: outcome.data["shares"] for model, outcome in outcomes.items()}
        grid = {"lengths": first["lengths"], "depths": first["depths"], "models": models}
        return {"grids": {self.spec.name: grid}}


def finds(answer: str, value: str) -> bool:
    """Whether the first number of an answer is the value."""
    number = _NUMBER.search(answer)
    return number is not None and number[0] == value


def _around(task: Grid, tokenizer: Tokenizer, plain: bool) -> tuple[Ids, Ids]:
    """What stands before the haystack and after it."""
    if plain:
        return list(tokenizer.prefix), tokenizer.encode(task.question)
    turn = [{"role": "user", "content": _MARK + task.question}]
    head, found, tail = tokenizer.render(turn, None, add_generation_prompt=True).partition(_MARK)
    if not found:
        raise DataError(f"{task.name}: the chat template does not write what the user says")
    return tokenizer.encode(head), tokenizer.encode(tail)


def finding(model: str, part: str, asked: Sequence[Hunt], batch_size: int) -> list[EvaluationBatch]:
    """Batches that look for hidden values."""
    return [
        EvaluationBatch(model, part, FIND, tuple(chosen), tuple(asked[at] for at in chosen))
        for chosen in by_length(asked, batch_size)
    ]


def by_length(items: Sequence[Hunt], batch_size: int) -> Iterator[list[int]]:
    """Which prompts go through the model together: those of one length, so that nothing is padded."""
    batch: list[int] = []
    for at, item in enumerate(items):
        if batch and (len(batch) == batch_size or len(items[batch[0]].prompt) != len(item.prompt)):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
