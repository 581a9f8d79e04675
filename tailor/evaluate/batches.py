"""The work of an evaluation, cut into batches that any worker may do: the same batches, whoever does them.

A batch is cut from the rows alone, never from what is left to do, so that an evaluation that goes on after it was
killed computes what it would have computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tailor.errors import ModelError
from tailor.evaluate import generation, likelihood
from tailor.evaluate.retrieval.collection import Text
from tailor.evaluate.rows import Ids, Scored
from tailor.models.causal import CausalModel
from tailor.spec.suite import Decoding

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded

EMBEDDED = 512
"""Texts in one batch to embed."""


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
class Computation:
    """What a worker computes for a batch.

    kind: its name, by which an unfinished evaluation knows it again. run: a function of a module, for it travels to
    workers by its name; (worker, batch) -> one plain JSON value per item, or `Embedded`.
    """

    kind: str
    run: Callable[[Worker, EvaluationBatch], Result]


@dataclass(frozen=True)
class EvaluationBatch:
    """Rows that go through one model together. part: the rows' name in the evaluation; items: their numbers there,
    each with its input."""

    model: str
    part: str
    computation: Computation
    items: tuple[int, ...]
    inputs: tuple[Any, ...]
    instruction: str | None = None
    """Before every text to embed."""
    dimension: int | None = None
    """Of the embeddings, where it is not the model's own."""

    def identity(self) -> dict[str, Any]:
        """All that decides the results, as plain values."""
        return {
            "model": self.model,
            "part": self.part,
            "kind": self.computation.kind,
            "items": self.items,
            "inputs": [
                asdict(one) if is_dataclass(one) and not isinstance(one, type) else one for one in self.inputs
            ],
            "instruction": self.instruction,
            "dimension": self.dimension,
        }


@dataclass(frozen=True)
class Embedded:
    """Texts embedded. vectors: float32[items, dimension]; truncated: how many texts were longer than the model reads."""

    vectors: np.ndarray
    truncated: int


Result = list[Any] | Embedded
"""Per item a value of plain JSON, such as the answer's token ids or a likelihood as a mapping."""
Runner = Callable[[Sequence[ModelRef], Decoding, Iterable[EvaluationBatch]], Iterator[tuple[int, Result]]]
"""Computes batches and gives (index among them, result), in the order in which they end."""


def generating(model: str, part: str, prompts: Sequence[Ids], batch_size: int) -> list[EvaluationBatch]:
    """Batches that answer prompts."""
    lengths = [len(prompt) for prompt in prompts]
    return [
        EvaluationBatch(model, part, GENERATE, tuple(chosen), tuple(prompts[i] for i in chosen))
        for chosen in generation.batches(lengths, batch_size, 0, None)
    ]


def scoring(model: str, part: str, sequences: Sequence[Scored], batch_size: int) -> list[EvaluationBatch]:
    """Batches that score the tokens of sequences."""
    return [
        EvaluationBatch(model, part, SCORE, tuple(chosen), tuple(sequences[i] for i in chosen))
        for chosen in likelihood.batches(sequences, batch_size)
    ]


def embedding(
    model: str, part: str, texts: Sequence[Text], dimension: int | None = None
) -> list[EvaluationBatch]:
    """Batches that embed texts, those of one instruction and of like length together. Blank ones are left out."""
    groups: dict[str | None, list[int]] = {}
    for number, one in enumerate(texts):
        if one.text:
            groups.setdefault(one.instruction, []).append(number)
    batches = []
    for instruction, numbers in groups.items():
        numbers.sort(key=lambda number: len(texts[number].text))
        for start in range(0, len(numbers), EMBEDDED):
            chosen = tuple(numbers[start : start + EMBEDDED])
            inputs = tuple(texts[number].text for number in chosen)
            batches.append(EvaluationBatch(model, part, EMBED, chosen, inputs, instruction, dimension))
    return batches


@dataclass(frozen=True)
class LanguageModel:
    """A model in memory that reads and writes text. scoring: the same for log-likelihoods and losses."""

    ref: ModelRef
    loaded: Loaded
    scoring: CausalModel

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.loaded.stop_ids if self.ref.stop_ids is None else self.ref.stop_ids

    def require_numbers(self, losses: Iterable[float]) -> None:
        """ModelError for losses that are no numbers."""
        if not all(map(math.isfinite, losses)):
            raise ModelError(
                f"{self.ref.url}: its log-likelihoods are no numbers",
                hint="the model's weights or its precision are broken; `tailor show` tells how it was trained",
            )


class Worker:
    """Computes batches in this process. It holds one model at a time; an adapter and its base are one."""

    def __init__(self, models: Sequence[ModelRef], decoding: Decoding) -> None:
        self._models = {model.label: model for model in models}
        self.decoding = decoding
        self._held: tuple[str, str] | None = None
        """What is in memory: a model's URL, and whether it writes or embeds."""
        self._loaded: Any = None
        self._scoring: Any = None
        self._embedder: Any = None

    def __call__(self, batch: EvaluationBatch) -> Result:
        return batch.computation.run(self, batch)

    def _hold(self, url: str, use: str) -> bool:
        """Make room for a model, unless it is there already."""
        if self._held == (url, use):
            return False
        self._loaded = self._scoring = self._embedder = None  # free the memory first
        self._held = (url, use)
        return True

    @contextmanager
    def language_model(self, label: str) -> Iterator[LanguageModel]:
        """The model of this label, loaded unless it is there already; its base alone where the evaluation says so."""
        from tailor.artifacts.load import load_run

        ref = self._models[label]
        if self._hold(ref.url, "write"):
            self._loaded = load_run(ref.url)
            self._scoring = likelihood.scoring_model(self._loaded.model)
        with self._loaded.without_adapter() if ref.without_adapter else nullcontext():
            yield LanguageModel(ref, self._loaded, self._scoring)

    def embed(self, batch: EvaluationBatch) -> Embedded:
        """The embeddings of a batch's texts."""
        from tailor.evaluate.retrieval.embedders import TextEmbedder

        ref = self._models[batch.model]
        if self._hold(ref.url, "embed"):
            self._embedder = TextEmbedder(ref.url, ref.embeds_like)
        vectors, truncated = self._embedder(
            batch.inputs, batch.instruction, batch.dimension, without_adapter=ref.without_adapter
        )
        return Embedded(vectors, truncated)


def _generate(worker: Worker, batch: EvaluationBatch) -> Result:
    settings = worker.decoding
    with worker.language_model(batch.model) as model:
        return generation.generate(
            model.loaded.model,
            batch.inputs,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            numbers=batch.items,
            stop_ids=model.stop_ids,
            batch_size=len(batch.inputs),
            pad_id=model.loaded.pad_id,
        )


def _score(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        found = likelihood.likelihoods(model.scoring, batch.inputs)
        model.require_numbers(one.loss for one in found)
        return [asdict(one) for one in found]


GENERATE = Computation("generate", _generate)
"""Inputs: prompts as token ids. Per item the answer's token ids, generated as `decoding` says."""
SCORE = Computation("score", _score)
"""Inputs: `Scored`. Per item a `likelihood.Likelihood` as a mapping."""
EMBED = Computation("embed", Worker.embed)
"""Inputs: texts."""


def in_process(
    models: Sequence[ModelRef], decoding: Decoding, batches: Iterable[EvaluationBatch]
) -> Iterator[tuple[int, Result]]:
    """Compute the batches here, one after the other."""
    worker = Worker(models, decoding)
    for index, batch in enumerate(batches):
        yield index, worker(batch)
