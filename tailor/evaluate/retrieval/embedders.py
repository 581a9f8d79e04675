"""Embeds the texts of an evaluation: by a trained model, or by its base with the same pooling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from tailor.artifacts.find import find_artifact, refuse_reranker
from tailor.artifacts.load import load_artifact
from tailor.artifacts.load_embedder import causal_model, load_embedder
from tailor.errors import ModelError
from tailor.models.embedding.attention import check_attention
from tailor.models.embedding.embedder import Embedder, states_width
from tailor.models.embedding.key_values import KeyValues
from tailor.models.embedding.settings import Embedding
from tailor.models.own_code import NOTHING, Trust
from tailor.store import Store


class TextEmbedder:
    """Embeds texts with a model.

    like: the folder whose embedding.json defines pooling and attention, for a base model without one. trust: own code that may run.
    """

    def __init__(self, url: str, like: str | None = None, trust: Trust = NOTHING) -> None:
        """Load the model. Raises ModelError and StoreError."""
        self._url = url
        self._embedder = load_embedder(url, trust=trust) if like is None else _untrained(url, like, trust)

    def __call__(
        self,
        texts: Sequence[str],
        instruction: str | None,
        dimension: int | None = None,
        *,
        without_adapter: bool = False,
        key_values: list[KeyValues] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Embeddings, float32[n, dimension], and the number of truncated texts.

        without_adapter: embed with the base, without adapter and projection. key_values: a list to append the key-values of
        each text to, from the same forward pass. ModelError for a dimension larger than the
        model's, and for embeddings that are NaN or infinite.
        """
        with _as_base(self._embedder) if without_adapter else nullcontext(self._embedder) as embedder:
            if dimension is not None and dimension > embedder.dimension:
                raise ModelError(
                    f"dimension: {dimension} is larger than the {embedder.dimension} dimensions of the embeddings of {self._url}"
                )
            before, full_dimension = embedder.truncated, embedder.dimension
            embedder.dimension = dimension or full_dimension
            if key_values is None:
                vectors = embedder.encode(texts, instruction)
            else:
                vectors, found = embedder.encode_with_key_values(texts, instruction)
                key_values += found
            embedder.dimension = full_dimension
            if not np.isfinite(vectors).all():
                raise ModelError(
                    f"{self._url}: its embeddings are NaN or infinite",
                    hint="check its weights and its precision; `tailor show` reports how it was trained",
                )
            return vectors, embedder.truncated - before

    @property
    def truncated(self) -> int:
        """Number of texts so far that were truncated."""
        return self._embedder.truncated


def require_embeddings(url: str) -> None:
    """ModelError for a run or model that was not trained for embeddings."""
    store, _ = find_artifact(Store(url))
    refuse_reranker(store)
    Embedding.read(store.local_path(), store.url)


def _untrained(url: str, like: str, trust: Trust) -> Embedder:
    store, _ = find_artifact(Store(like))
    settings, _ = Embedding.read(store.local_path(), store.url)
    network, tokenizer = load_artifact(url, trust=trust)
    model = causal_model(network)
    check_attention(model, model.base.dtype, attention=settings.attention, window=settings.window)
    return Embedder(model, tokenizer, replace(settings, projection=False, dimension=states_width(model)))


@contextmanager
def _as_base(embedder: Embedder) -> Iterator[Embedder]:
    """The embedder without its adapter and its projection, which training added."""
    model, dimension = embedder.model, embedder.dimension
    projection, model.projection = model.projection, None
    embedder.dimension = states_width(model)
    try:
        with model.network.disable_adapter():
            yield embedder
    finally:
        model.projection, embedder.dimension = projection, dimension
