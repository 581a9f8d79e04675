"""Embeddings of texts by a model, with the format, pooling and projection that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tailor.encode.embedding_examples import TextEncoder
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.models import rope
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.models.embedding.attention import check_attention, text_states
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.pooling import finish, new_projection, pool, shorten
from tailor.models.embedding.settings import Embedding
from tailor.models.load import DTYPES
from tailor.spec.methods.base import EmbeddingMethod

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Of one forward pass. Larger ones are no faster, as in training."""


def fit_to_embed(model: CausalModel, spec: EmbeddingMethod, *, seed: int) -> None:
    """Give a model what the method trains beside it, and freeze what the method does not reach.

    Data parallelism would wait for gradients of a head that nothing is generated with.
    """
    if spec.projection is not None:
        model.projection = new_projection(states_width(model), spec.projection, seed=seed)
        model.projection.to(model.device)
    embedding = model.base.get_input_embeddings().weight
    if not spec.generates and all(weight is not embedding for weight in model.head.parameters()):
        model.head.requires_grad_(False)


def prove_embedding(model: CausalModel, spec: EmbeddingMethod, precision: str) -> None:
    """Prove that the model reads texts as declared, in the arithmetic of training. ModelError."""
    dtype = DTYPES[precision]
    with torch.autocast(model.device.type, dtype=dtype, enabled=precision != "fp32"):
        check_attention(model, dtype, attention=spec.attention, window=spec.window)


def settings_of(model: CausalModel, spec: EmbeddingMethod, max_length: int) -> Embedding:
    """How a model embeds that was trained by a recipe. max_length: of the recipe's data."""
    longest = max(length or max_length for length in (spec.max_query_length, spec.max_passage_length))
    return Embedding.of(spec, states_width(model), longest)


def states_width(model: CausalModel) -> int:
    """Width of the model's last hidden states."""
    config = model.base.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def embed(model: CausalModel, settings: Embedding, batch: TokenBatch) -> torch.Tensor:
    """Embeddings of a micro-batch of texts before they are cut and normalized, float32[D, dimension]."""
    assert batch.pool is not None
    states = text_states(model, batch, attention=settings.attention, window=settings.window)
    return finish(pool(states, batch.pool, settings.pooling), model.projection)


class Embedder:
    """Encodes texts of any number and length."""

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        settings: Embedding,
        *,
        dimension: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """dimension: takes a shorter embedding (Matryoshka). max_length: in tokens, by default that of training."""
        self.model = model
        self.settings = settings
        self.dimension = dimension or settings.dimension
        self.max_length = max_length or settings.max_length
        self.truncated = 0
        """Texts that were longer, so far: their ends were left out."""
        self._encoder = TextEncoder(tokenizer, settings.format)

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Embeddings of texts, float32[n, dimension], in their order. DataError for an empty text."""
        found = np.zeros((len(texts), self.dimension), np.float32)
        if not len(texts):
            return found
        encoded = self._encoder([(instruction, text) for text in texts], self.max_length)
        for number, text in enumerate(encoded):
            if text.start == len(text.input_ids):
                raise DataError(
                    f"text {number} is empty: no token of it would be pooled", hint="leave it out"
                )
        self.truncated += sum(text.cut > 0 for text in encoded)
        lengths = np.array([len(text.input_ids) for text in encoded])
        order = np.argsort(-lengths, kind="stable")
        most = BATCH_TOKENS.get(self.model.device.type, 32768)
        if rope.follows_length(self.model.base):
            most = 1  # a longer text would change the frequencies of those beside it
        for part in _parts(order, lengths, most):
            pieces = [(encoded[i].input_ids, np.array([[encoded[i].start, lengths[i]]])) for i in part]
            found[part] = self._batch(lay_out_texts(pieces, self.model.layout)).cpu().numpy()
        return found

    def _batch(self, batch: TokenBatch) -> torch.Tensor:
        with self.model.inference_mode():
            vectors = embed(self.model, self.settings, batch.to(self.model.device))
        return shorten(vectors, self.dimension, normalize=self.settings.normalize)


def _parts(order: np.ndarray, lengths: np.ndarray, most: int) -> list[np.ndarray]:
    """Texts, longest first, cut so that none of the parts has over `most` tokens, if it has several texts."""
    parts: list[list[int]] = [[]]
    for number in order:
        if parts[-1] and (len(parts[-1]) + 1) * lengths[parts[-1][0]] > most:
            parts.append([])
        parts[-1].append(int(number))
    return [np.array(part) for part in parts]
