"""What embeds the texts of an evaluation: a model as it was trained, or its base, pooled in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from tailor.artifacts.load import causal_model, find_artifact, load_embedder, load_run
from tailor.errors import ModelError
from tailor.models.embedding.attention import check_attention
from tailor.models.embedding.embedder import Embedder, states_width
from tailor.models.embedding.settings import Embedding
from tailor.store import Store


class TextEmbedder:
    """A model's embedder. like: the folder whose embedding.json says how a base is pooled, that has none itself."""

    def __init__(self, url: str, like: str | None = None) -> None:
        """ModelError, StoreError."""
        self._url = url
        self._embedder = load_embedder(url) if like is None else _untrained(url, like)

    def __call__(
        self,
        texts: Sequence[str],
        instruction: str | None,
        dimension: int | None = None,
        *,
        without_adapter: bool = False,
    ) -> tuple[np.ndarray, int]:
        """Embeddings float32[n, dimension], and how many of the texts were longer than the model reads.

        without_adapter: by the base alone, which has no projection either. ModelError for a dimension that the model
        has not, and for embeddings that are no numbers.
        """
        with _as_base(self._embedder) if without_adapter else nullcontext(self._embedder) as embedder:
            if dimension is not None and dimension > embedder.dimension:
                raise ModelError(
                    f"dimension: the embeddings of {self._url} have {embedder.dimension} numbers, not {dimension}"
                )
            before, whole = embedder.truncated, embedder.dimension
            embedder.dimension = dimension or whole
            vectors = embedder.encode(texts, instruction)
            embedder.dimension = whole
            if not np.isfinite(vectors).all():
                raise ModelError(
                    f"{self._url}: its embeddings are no numbers",
                    hint="the model's weights or its precision are broken; `tailor show` tells how it was trained",
                )
            return vectors, embedder.truncated - before


def require_embeddings(url: str) -> None:
    """ModelError for a run or model that makes no embeddings."""
    store, _ = find_artifact(Store(url))
    Embedding.read(store.local_path(), store.url)


def _untrained(url: str, like: str) -> Embedder:
    store, _ = find_artifact(Store(like))
    settings, _ = Embedding.read(store.local_path(), store.url)
    loaded = load_run(url)
    model = causal_model(loaded.model)
    check_attention(model, model.base.dtype, attention=settings.attention, window=settings.window)
    return Embedder(
        model, loaded.tokenizer, replace(settings, projection=False, dimension=states_width(model))
    )


@contextmanager
def _as_base(embedder: Embedder) -> Iterator[Embedder]:
    """Without what training added: the adapter and the projection."""
    model, dimension = embedder.model, embedder.dimension
    projection, model.projection = model.projection, None
    embedder.dimension = states_width(model)
    try:
        with model.network.disable_adapter():
            yield embedder
    finally:
        model.projection, embedder.dimension = projection, dimension
