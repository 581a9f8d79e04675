"""Needle-in-a-haystack prompts: values hidden at exact depths in prompts of exact length, built from token ids."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, ClassVar, TypeVar

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
"""New tokens allowed for each value of an answer, in addition to the tokens of the value."""
_MARK = "\ue000"
"""Marks the position of the haystack in a rendered user turn: a private-use character that no template writes."""


@dataclass(frozen=True)
class Needle:
    """A text to hide at `depth`, from 0 to 1.

    value: what an answer must contain if it found it; None for a distractor. cell: the depth whose results it counts for.
    """

    text: str
    depth: float
    value: str | None
    cell: float


@dataclass(frozen=True)
class Hiding:
    """The needles of a prompt, and the question at its end."""

    needles: Sequence[Needle]
    question: str


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt and the values that it hides.

    ids: the prompt's token ids. values: the expected ones. starts: of each, index of the first token of the needle (the
    sentence with the value). cells: of each, the depth for which it counts.
    """

    location: dict[str, Any]
    """`length` in tokens, `depth` from 0 to 1, and `sample` from 1."""
    ids: Ids
    values: tuple[str, ...]
    starts: tuple[int, ...]
    cells: tuple[float, ...]
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


class GridEvaluator(TaskEvaluator[S]):
    """Share of hidden values found: in total, by length, and by length and depth. A subclass hides and finds them."""

    min_new_tokens: ClassVar[int] = 0
    """New tokens that every answer may have."""

    @abstractmethod
    def haystack(self) -> list[str]:
        """The texts of the haystack."""

    @abstractmethod
    def excerpt(self, hay: Ids, length: int, draw: random.Random) -> Ids:
        """`length` consecutive tokens of the haystack."""

    @abstractmethod
    def hide(self, depth: int, draw: random.Random) -> Hiding:
        """What a prompt hides. depth: its index in the sorted depths."""

    @abstractmethod
    def found(self, answer: str, values: Sequence[str]) -> list[bool]:
        """Whether an answer has found each of the values."""

    @property
    def depths(self) -> list[float]:
        return sorted(self.spec.depths)

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

        DataError when a length is too short for the needles and the question, or the haystack has no token.
        """
        task, found = self.spec, []
        frame = lru_cache(maxsize=1)(lambda question: _frame(task.name, question, tokenizer, plain))
        hay = [token for text in haystack for token in tokenizer.encode(text)]
        if not hay:
            raise DataError(f"{task.name}: the haystack has no tokens", hint="write words into its text")
        for length in sorted(task.lengths):
            for at, depth in enumerate(self.depths):
                for sample in range(1, task.samples + 1):
                    # Seeded by its position in the grid: adding lengths or samples changes no other prompt.
                    draw = random.Random(f"{task.seed}/{length}/{depth:g}/{sample}")
                    hiding = self.hide(at, draw)
                    before, after = frame(hiding.question)
                    needles = [tokenizer.encode(needle.text) for needle in hiding.needles]
                    room = length - len(before) - sum(map(len, needles)) - len(after)
                    if room < 0:
                        raise DataError(
                            f"{task.name}: lengths: {length} tokens are too few for the "
                            f"{'needle' if len(needles) == 1 else 'needles'} and the question, which need {length - room}",
                            hint="increase the lengths, or shorten needle and question",
                        )
                    around = self.excerpt(hay, room, draw)
                    prompt, starts = _with_needles(before, around, hiding.needles, needles)
                    prompt += after
                    assert len(prompt) == length
                    expected = [
                        (needle.value, start, needle.cell)
                        for needle, start in zip(hiding.needles, starts, strict=True)
                        if needle.value is not None
                    ]
                    values, positions, cells = zip(*expected, strict=True)
                    new_tokens = sum(len(tokenizer.encode(value)) + ANSWER_ROOM for value in values)
                    max_new_tokens = max(self.min_new_tokens, new_tokens)
                    location = {"length": length, "depth": depth, "sample": sample}
                    found.append(
                        NeedlePrompt(location, prompt, values, positions, cells, max_new_tokens, task.prefill)
                    )
        return found

    def judge(self, inputs: TaskInputs, collected: Collected) -> Outcome:
        name, prompts = self.spec.name, inputs.rows
        answers = collected.answers(name, len(prompts), inputs.tokenizer)
        hits = [self.found(answer, one.values) for answer, one in zip(answers, prompts, strict=True)]
        shares = [sum(own) / len(own) for own in hits]
        figures, lengths = {name: mean(shares)}, sorted(self.spec.lengths)
        for length in lengths:
            own = [
                share for share, one in zip(shares, prompts, strict=True) if one.location["length"] == length
            ]
            figures[f"{name}_{length}"] = mean(own)
        rows = [
            ({**one.location, **_shown(one)}, {"answer": answer, "found": share})
            for one, answer, share in zip(prompts, answers, shares, strict=True)
        ]
        cells: dict[tuple[int, float], list[bool]] = {}
        counts: dict[tuple[int, float], set[int]] = {}
        for number, (one, own) in enumerate(zip(prompts, hits, strict=True)):
            for depth, hit in zip(one.cells, own, strict=True):
                cells.setdefault((one.location["length"], depth), []).append(hit)
                counts.setdefault((one.location["length"], depth), set()).add(number)
        data = {
            "shares": [[fmean(cells[at, depth]) for depth in self.depths] for at in lengths],
            "counts": [[len(counts[at, depth]) for depth in self.depths] for at in lengths],
            "scores": [figures[f"{name}_{length}"].value for length in lengths],
        }
        return Outcome(figures, f"{name}.jsonl", rows, data=data)

    def summary(self, outcomes: Mapping[str, Outcome]) -> Mapping[str, Any]:
        """The grid: lengths, depths, and for each model the shares found, [length][depth]; the scores by length.

        prompts: the number of prompts of each cell, [length][depth].
        """
        lengths = sorted(self.spec.lengths)
        grid = {
            "lengths": lengths,
            "depths": self.depths,
            "prompts": next(iter(outcomes.values())).data["counts"],
            "models": {model: outcome.data["shares"] for model, outcome in outcomes.items()},
        }
        scores = {model: outcome.data["scores"] for model, outcome in outcomes.items()}
        by_length = {"threshold": self.spec.threshold, "lengths": lengths, "scores": scores}
        return {"grids": {self.spec.name: grid}, "by_length": {self.spec.name: by_length}}


def repeated(hay: Ids, length: int) -> Ids:
    """`length` tokens of a haystack that is repeated."""
    return (hay * (length // max(1, len(hay)) + 1))[:length]


def drawn(task: Grid, hay: Ids, length: int, draw: random.Random) -> Ids:
    """`length` consecutive tokens from a random position of the haystack. DataError when it has fewer."""
    if len(hay) < length:
        raise DataError(
            f"{task.name}: the texts have {len(hay):,} tokens in total, fewer than the largest of lengths ({max(task.lengths):,})",
            hint="add texts to data, or reduce lengths",
        )
    start = draw.randrange(len(hay) - length + 1)
    return hay[start : start + length]


def number(digits: int, draw: random.Random) -> str:
    """A random number with this many digits."""
    return str(draw.randrange(10 ** (digits - 1), 10**digits))


def numbers(count: int, digits: int, draw: random.Random) -> list[str]:
    """Different random numbers with this many digits."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[number(digits, draw)] = None
    return list(found)


def _with_needles(
    before: Ids, hay: Ids, needles: Sequence[Needle], ids: Sequence[Ids]
) -> tuple[Ids, list[int]]:
    """The haystack with the needles, each before token `round(depth * len(hay))` of it, and where each one starts.

    Needles at the same token keep their order.
    """
    offsets = [round(needle.depth * len(hay)) for needle in needles]
    prompt, starts, used = list(before), [0] * len(needles), 0
    for at in sorted(range(len(needles)), key=lambda at: offsets[at]):
        prompt += hay[used : offsets[at]]
        starts[at], used = len(prompt), offsets[at]
        prompt += ids[at]
    return prompt + hay[used:], starts


def _shown(prompt: NeedlePrompt) -> dict[str, Any]:
    """The fields of the values in a row of the results."""
    if len(prompt.values) == 1:
        return {"value": prompt.values[0], "start": prompt.starts[0]}
    return {"values": list(prompt.values), "starts": list(prompt.starts)}


def _frame(name: str, question: str, tokenizer: Tokenizer, plain: bool) -> tuple[Ids, Ids]:
    """The tokens before and after the haystack. DataError when the chat template drops the user's text."""
    if plain:
        return list(tokenizer.prefix), tokenizer.encode(question)
    turn = [{"role": "user", "content": _MARK + question}]
    head, found, tail = tokenizer.render(turn, None, add_generation_prompt=True).partition(_MARK)
    if not found:
        raise DataError(f"{name}: the chat template does not render the content of a user message")
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
