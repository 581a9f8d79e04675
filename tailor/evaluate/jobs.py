"""The work of an evaluation, cut into batches that any worker may do: the same batches, whoever does them.

A batch is cut from the rows alone, never from what is left to do, so that an evaluation that goes on after it was
killed computes what it would have computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tailor.errors import ModelError
from tailor.evaluate import generation, grid, harness, likelihood, windows
from tailor.evaluate.grid import Hunt
from tailor.evaluate.retrieval.collection import Text
from tailor.evaluate.rows import Ids, Scored
from tailor.evaluate.windows import Windows
from tailor.spec.suite import Decoding, LmEval

Kind = Literal["generate", "score", "read", "find", "embed", "lm_eval"]
EMBEDDED = 512
"""Texts in one job to embed."""


@dataclass(frozen=True)
class ModelRef:
    """A model to load. without_adapter: its base alone. stop_ids: in place of the model's own.

    embeds_like: the folder whose embedding.json says how it embeds, where it has none itself.
    """

    label: str
    url: str
    without_adapter: bool = False
    stop_ids: tuple[int, ...] | None = None
    embeds_like: str | None = None


@dataclass(frozen=True)
class Job:
    """One batch. part: the rows' name in the evaluation; items: their numbers there, each with its input."""

    model: str
    part: str
    kind: Kind
    items: tuple[int, ...]
    inputs: tuple[Any, ...]
    instruction: str | None = None
    """Before every text to embed."""
    dimension: int | None = None
    """Of the embeddings, where it is not the model's own."""


@dataclass(frozen=True)
class Embedded:
    """Texts embedded. vectors: float32[items, dimension]; truncated: how many texts were longer than the model reads."""

    vectors: np.ndarray
    truncated: int


Result = list[Any] | Embedded
"""Per item: the answer's token ids, a likelihood or losses by position as a mapping, or what a task of lm-eval gave."""
Runner = Callable[[Sequence[ModelRef], Decoding, Iterable[Job]], Iterator[tuple[int, Result]]]
"""Does jobs and gives (index among them, result), in the order in which they end."""


def generating(model: str, part: str, prompts: Sequence[Ids], batch_size: int) -> list[Job]:
    """Jobs that answer prompts."""
    lengths = [len(prompt) for prompt in prompts]
    return [
        Job(model, part, "generate", tuple(chosen), tuple(prompts[i] for i in chosen))
        for chosen in generation.batches(lengths, batch_size, 0, None)
    ]


def scoring(model: str, part: str, sequences: Sequence[Scored], batch_size: int) -> list[Job]:
    """Jobs that score the tokens of sequences."""
    return [
        Job(model, part, "score", tuple(chosen), tuple(sequences[i] for i in chosen))
        for chosen in likelihood.batches(sequences, batch_size)
    ]


def embedding(model: str, part: str, texts: Sequence[Text], dimension: int | None = None) -> list[Job]:
    """Jobs that embed texts, those of one instruction and of like length together. Blank ones are left out."""
    groups: dict[str | None, list[int]] = {}
    for number, one in enumerate(texts):
        if one.text:
            groups.setdefault(one.instruction, []).append(number)
    jobs = []
    for instruction, numbers in groups.items():
        numbers.sort(key=lambda number: len(texts[number].text))
        for start in range(0, len(numbers), EMBEDDED):
            chosen = tuple(numbers[start : start + EMBEDDED])
            inputs = tuple(texts[number].text for number in chosen)
            jobs.append(Job(model, part, "embed", chosen, inputs, instruction, dimension))
    return jobs


def of_lm_eval(model: str, task: LmEval) -> list[Job]:
    """One job for each of lm-eval's tasks."""
    asked = harness.settings(task)
    return [Job(model, harness.PART, "lm_eval", (at,), (one,)) for at, one in enumerate(asked)]


def reading(model: str, part: str, texts: Sequence[Windows]) -> list[Job]:
    """Jobs that read long texts, one each."""
    return [Job(model, part, "read", (at,), (text,)) for at, text in enumerate(texts)]


def finding(model: str, part: str, hunts: Sequence[Hunt], batch_size: int) -> list[Job]:
    """Jobs that look for hidden values."""
    return [
        Job(model, part, "find", tuple(chosen), tuple(hunts[at] for at in chosen))
        for chosen in grid.by_length(hunts, batch_size)
    ]


class Worker:
    """Does jobs in this process. It holds one model at a time; an adapter and its base are one."""

    def __init__(self, models: Sequence[ModelRef], decoding: Decoding) -> None:
        self._models = {model.label: model for model in models}
        self._decoding = decoding
        self._held: tuple[str, str] | None = None
        """What is in memory: a model's URL, and whether it writes or embeds."""
        self._loaded: Any = None
        self._scoring: Any = None
        self._embedder: Any = None

    def __call__(self, job: Job) -> Result:
        ref = self._models[job.model]
        return self._embed(ref, job) if job.kind == "embed" else self._write(ref, job)

    def _hold(self, url: str, use: str) -> bool:
        """Make room for a model, unless it is there already."""
        if self._held == (url, use):
            return False
        self._loaded = self._scoring = self._embedder = None  # free the memory first
        self._held = (url, use)
        return True

    def _embed(self, ref: ModelRef, job: Job) -> Embedded:
        from tailor.evaluate.retrieval.embedders import TextEmbedder

        if self._hold(ref.url, "embed"):
            self._embedder = TextEmbedder(ref.url, ref.embeds_like)
        vectors, truncated = self._embedder(
            job.inputs, job.instruction, job.dimension, without_adapter=ref.without_adapter
        )
        return Embedded(vectors, truncated)

    def _write(self, ref: ModelRef, job: Job) -> list[Any]:
        from tailor.artifacts.load import load_run

        settings = self._decoding
        if self._hold(ref.url, "write"):
            self._loaded = load_run(ref.url)
            self._scoring = likelihood.scoring_model(self._loaded.model)
        loaded = self._loaded
        with loaded.without_adapter() if ref.without_adapter else nullcontext():
            if job.kind == "score":
                found = likelihood.likelihoods(self._scoring, job.inputs)
                _require_numbers((one.loss for one in found), ref)
                return [asdict(one) for one in found]
            if job.kind == "lm_eval":
                return [harness.run(loaded, asked, settings.batch_size) for asked in job.inputs]
            if job.kind == "read":
                read = [windows.losses(self._scoring, text) for text in job.inputs]
                _require_numbers((loss for one in read for loss in one.loss), ref)
                return [asdict(one) for one in read]
            stops = loaded.stop_ids if ref.stop_ids is None else ref.stop_ids
            shared = {"stop_ids": stops, "batch_size": len(job.inputs), "pad_id": loaded.pad_id}
            if job.kind == "find":
                most = max(hunt.max_new_tokens for hunt in job.inputs)
                return generation.generate(
                    loaded.model,
                    [hunt.prompt for hunt in job.inputs],
                    max_new_tokens=most,
                    beyond=True,
                    prefill=job.inputs[0].prefill,
                    **shared,
                )
            return generation.generate(
                loaded.model,
                job.inputs,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed,
                numbers=job.items,
                **shared,
            )


def _require_numbers(losses: Iterable[float], ref: ModelRef) -> None:
    if not all(map(math.isfinite, losses)):
        raise ModelError(
            f"{ref.url}: its log-likelihoods are no numbers",
            hint="the model's weights or its precision are broken; `tailor show` tells how it was trained",
        )


def in_process(
    models: Sequence[ModelRef], decoding: Decoding, jobs: Iterable[Job]
) -> Iterator[tuple[int, Result]]:
    """Do the jobs here, one after the other."""
    worker = Worker(models, decoding)
    for index, job in enumerate(jobs):
        yield index, worker(job)
