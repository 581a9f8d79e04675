"""The work of an evaluation as batches, which any worker can compute.

The batches depend only on the rows, not on the number of workers or on what is already done. So an evaluation that
resumes after it was killed computes the same batches, with the same padding and the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tailor.errors import ModelError
from tailor.evaluate import continuous, generation, likelihood
from tailor.evaluate.retrieval.collection import Text
from tailor.evaluate.rows import Ids, Scored
from tailor.models.causal import CausalModel
from tailor.models.own_code import NOTHING, Trust
from tailor.spec.suite import Decoding

if TYPE_CHECKING:
    from tailor.artifacts.load import Loaded
    from tailor.models.embedding.key_values import KeyValues

EMBEDDED = 512
"""Texts in one embedding batch."""


SAMPLE = 1 << 32
"""Item `n + k * SAMPLE` is sample k of item n."""


@dataclass(frozen=True)
class ModelRef:
    """A model to load.

    without_adapter: use only its base. without_rope: load the base without `model.rope`. stop_ids: replace the model's own stop tokens. embeds_like: the folder whose
    embedding.json defines pooling and attention, for a base model without one. trust: the own code that may run.
    """

    label: str
    url: str
    without_adapter: bool = False
    without_rope: bool = False
    stop_ids: tuple[int, ...] | None = None
    embeds_like: str | None = None
    trust: Trust = NOTHING


@dataclass(frozen=True)
class Computation:
    """What a worker computes for a batch.

    kind: its name, a part of the fingerprint by which an unfinished evaluation is resumed. run: (worker, batch) -> one
    JSON value per item, or `Embedded`; a module-level function, because it is pickled by name for Ray's workers.
    """

    kind: str
    run: Callable[[Worker, EvaluationBatch], Result]
    sizes: Callable[[Sequence[Any], Decoding], Iterable[tuple[int, int]]] | None = None
    """(inputs, decoding) -> (tokens, maximum new tokens) of every sequence that the language model reads."""


@dataclass(frozen=True)
class EvaluationBatch:
    """Rows that one model computes together.

    part: name of the group of rows, such as `questions`. items: their numbers in the part. inputs: one per item.
    """

    model: str
    part: str
    computation: Computation
    items: tuple[int, ...]
    inputs: tuple[Any, ...]
    instruction: str | None = None
    """Written before every text to embed."""
    dimension: int | None = None
    """Truncates the embeddings to this dimension; None keeps the model's own."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides the results, as JSON values."""
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
    """Embeddings of a batch. vectors: float32[items, dimension]; truncated: number of texts that were truncated."""

    vectors: np.ndarray
    truncated: int
    key_values: tuple[KeyValues, ...] = ()
    """Of each text, if they were asked for."""


Result = list[Any] | Embedded
"""One JSON value per item (such as the token ids of an answer, or a likelihood as a mapping), or embeddings."""
Runner = Callable[[Sequence[ModelRef], Decoding, Iterable[EvaluationBatch]], Iterator[tuple[int, Result]]]
"""Computes batches and yields (index of the batch, result) in the order of completion."""


def generating(model: str, part: str, prompts: Sequence[Ids], batch_size: int) -> list[EvaluationBatch]:
    """Batches that generate an answer to each prompt."""
    lengths = [len(prompt) for prompt in prompts]
    return [
        EvaluationBatch(model, part, GENERATE, tuple(chosen), tuple(prompts[i] for i in chosen))
        for chosen in generation.batches(lengths, batch_size, 0, None)
    ]


def sampled(batch: EvaluationBatch, samples: int) -> Iterator[EvaluationBatch]:
    """The batch once per sample. The items of each sample have other numbers, and so other random numbers.

    Batches that do not generate answers as `decoding` says are not repeated.
    """
    for sample in range(samples if batch.computation is GENERATE else 1):
        yield replace(batch, items=tuple(item + sample * SAMPLE for item in batch.items))


def scoring(model: str, part: str, sequences: Sequence[Scored], batch_size: int) -> list[EvaluationBatch]:
    """Batches that compute the log-likelihood of the scored tokens of each sequence."""
    return [
        EvaluationBatch(model, part, SCORE, tuple(chosen), tuple(sequences[i] for i in chosen))
        for chosen in likelihood.batches(sequences, batch_size)
    ]


def embedding(
    model: str, part: str, texts: Sequence[Text], dimension: int | None = None
) -> list[EvaluationBatch]:
    """Batches that embed texts. A batch has texts of one instruction and of similar length. Blank texts are left out."""
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
    """A loaded language model. scoring: the same model, wrapped for log-likelihoods and losses."""

    ref: ModelRef
    loaded: Loaded
    scoring: CausalModel

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.loaded.stop_ids if self.ref.stop_ids is None else self.ref.stop_ids

    def require_numbers(self, losses: Iterable[float]) -> None:
        """ModelError for losses that are NaN or infinite."""
        if not all(map(math.isfinite, losses)):
            raise ModelError(
                f"{self.ref.url}: its log-likelihoods are NaN or infinite",
                hint="check its weights and its precision; `tailor show` reports how it was trained",
            )


class Worker:
    """Computes batches in this process. One model is in memory at a time; an adapter and its base count as one."""

    def __init__(self, models: Sequence[ModelRef], decoding: Decoding) -> None:
        self._models = {model.label: model for model in models}
        self.decoding = decoding
        self._current: tuple[str, str] | None = None
        """The model in memory: its URL, and `write`, `write without rope`, `embed` or `rerank`."""
        self._loaded: Any = None
        self._scoring: Any = None
        self._embedder: Any = None

    def __call__(self, batch: EvaluationBatch) -> Result:
        return batch.computation.run(self, batch)

    def _make_room(self, url: str, use: str) -> bool:
        """Free the loaded model, unless it is the requested one. Returns whether the requested one must be loaded."""
        if self._current == (url, use):
            return False
        self._loaded = self._scoring = self._embedder = None  # free the memory first
        self._current = (url, use)
        return True

    @contextmanager
    def language_model(self, label: str) -> Iterator[LanguageModel]:
        """The model of this label, loaded on first use. Its adapter is disabled if the evaluation uses only its base."""
        from tailor.artifacts.load import load_run

        ref = self._models[label]
        if self._make_room(ref.url, "write without rope" if ref.without_rope else "write"):
            self._loaded = load_run(ref.url, trust=ref.trust, without_rope=ref.without_rope)
            self._scoring = likelihood.scoring_model(self._loaded.model)
        with self._loaded.without_adapter() if ref.without_adapter else nullcontext():
            yield LanguageModel(ref, self._loaded, self._scoring)

    def embed(self, batch: EvaluationBatch, key_values: list[KeyValues] | None = None) -> Embedded:
        """The embeddings of a batch's texts. key_values: as for `TextEmbedder`."""
        return self._embedded(batch.model, batch.inputs, batch.instruction, batch.dimension, key_values)

    def vectors(
        self, label: str, dimension: int | None, texts: Sequence[str], instruction: str | None
    ) -> np.ndarray:
        """The embeddings of any texts by the model of this label, float32[n, E]."""
        return self._embedded(label, texts, instruction, dimension).vectors

    def _embedded(
        self,
        label: str,
        texts: Sequence[str],
        instruction: str | None,
        dimension: int | None,
        key_values: list[KeyValues] | None = None,
    ) -> Embedded:
        from tailor.evaluate.retrieval.embedders import TextEmbedder

        ref = self._models[label]
        if self._make_room(ref.url, "embed"):
            self._embedder = TextEmbedder(ref.url, ref.embeds_like, ref.trust)
        vectors, truncated = self._embedder(
            texts, instruction, dimension, without_adapter=ref.without_adapter, key_values=key_values
        )
        return Embedded(vectors, truncated, tuple(key_values or ()))

    def rerank(self, batch: EvaluationBatch) -> Result:
        """The scores of a batch's (query, passage) pairs by a cross-encoder, each with whether the pair was truncated."""
        from tailor.artifacts.cross_encoder import CrossEncoderModel

        ref = self._models[batch.model]
        if self._make_room(ref.url, "rerank"):
            self._loaded = CrossEncoderModel(ref.url)
        model: CrossEncoderModel = self._loaded
        lengths = model.lengths(batch.inputs)
        return [
            [score, length > model.max_length]
            for score, length in zip(model(batch.inputs), lengths, strict=True)
        ]


def _generate(worker: Worker, batch: EvaluationBatch) -> Result:
    settings = worker.decoding
    with worker.language_model(batch.model) as model:
        return continuous.generate(
            model.loaded.model,
            batch.inputs,
            max_new_tokens=settings.max_new_tokens,
            sampling=generation.Sampling(settings.temperature, settings.top_p, settings.seed),
            numbers=batch.items,
            stop_ids=model.stop_ids,
            batch_size=len(batch.inputs),
            pad_id=model.loaded.pad_id,
        )


def _score(worker: Worker, batch: EvaluationBatch) -> Result:
    with worker.language_model(batch.model) as model:
        likelihoods = likelihood.likelihoods(model.scoring, batch.inputs)
        model.require_numbers(one.loss for one in likelihoods)
        return [asdict(one) for one in likelihoods]


def _embed_with_key_values(worker: Worker, batch: EvaluationBatch) -> Result:
    return worker.embed(batch, [])


def _prompts(inputs: Sequence[Any], decoding: Decoding) -> Iterator[tuple[int, int]]:
    return ((len(prompt), decoding.max_new_tokens) for prompt in inputs)


def _scored(inputs: Sequence[Any], decoding: Decoding) -> Iterator[tuple[int, int]]:
    return ((len(one.ids), 0) for one in inputs)


GENERATE = Computation("generate", _generate, _prompts)
"""Inputs: prompts as token ids. Result per item: the answer's token ids, generated as `decoding` says."""
SCORE = Computation("score", _score, _scored)
"""Inputs: `Scored`. Result per item: a `likelihood.Likelihood` as a mapping."""
EMBED = Computation("embed", Worker.embed)
"""Inputs: texts. Result: `Embedded`."""
EMBED_WITH_KEY_VALUES = Computation("embed with key-values", _embed_with_key_values)
"""The same, with the key-values of each text."""
RERANK = Computation("score pairs", Worker.rerank)
"""Inputs: (query, passage) pairs of texts. Result per item: [the score, whether the pair was truncated]."""


def in_process(
    models: Sequence[ModelRef], decoding: Decoding, batches: Iterable[EvaluationBatch]
) -> Iterator[tuple[int, Result]]:
    """Compute the batches in this process, one after the other."""
    worker = Worker(models, decoding)
    for index, batch in enumerate(batches):
        yield index, worker(batch)
