"""Embed texts with a model, using the format, pooling and projection of its training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from tailor.encode.embedding_examples import TextEncoder, TextFormat, TextTokens
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import DataError
from tailor.models import rope
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.models.embedding.attention import check_attention, check_prefix_lm, text_output
from tailor.models.embedding.key_values import KeyValues, embed_with_key_values, require_key_values
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.pooling import finish, new_projection, pool, shorten
from tailor.models.embedding.settings import Embedding
from tailor.models.load import DTYPES
from tailor.spec.methods.base import EmbeddingMethod

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Maximum tokens of one forward pass. Larger ones are not faster."""


def fit_to_embed(model: CausalModel, spec: EmbeddingMethod, *, seed: int) -> None:
    """Add the projection that an embedding method trains, and freeze the output head if the method does not use it.

    DDP waits for a gradient of every trained weight; a method that only embeds gives the head none.
    """
    if spec.projection is not None:
        model.projection = new_projection(states_width(model), spec.projection, seed=seed)
        model.projection.to(model.device)
    embedding = model.base.get_input_embeddings().weight
    if not spec.generates and all(weight is not embedding for weight in model.head.parameters()):
        model.head.requires_grad_(False)


def prove_embedding(model: CausalModel, spec: EmbeddingMethod, precision: str) -> None:
    """Check, under the autocast of training, that the model reads texts with the attention of the recipe. ModelError."""
    dtype = DTYPES[precision]
    with torch.autocast(model.device.type, dtype=dtype, enabled=precision != "fp32"):
        check_attention(model, dtype, attention=spec.attention, window=spec.window)


def prove_prefix_lm(model: CausalModel, precision: str) -> None:
    """The same check for prompts that are read in both directions. ModelError."""
    dtype = DTYPES[precision]
    with torch.autocast(model.device.type, dtype=dtype, enabled=precision != "fp32"):
        check_prefix_lm(model, dtype)


def settings_of(model: CausalModel, spec: EmbeddingMethod, max_length: int, format: TextFormat) -> Embedding:
    """The settings to save with a model that a recipe trained. max_length: `data.max_length`. format: of its base."""
    longest = max(length or max_length for length in (spec.max_query_length, spec.max_passage_length))
    return Embedding.of(spec, states_width(model), longest, format)


def states_width(model: CausalModel) -> int:
    """H, the size of the model's last hidden states."""
    config = model.base.config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def embed(model: CausalModel, settings: Embedding, batch: TokenBatch) -> torch.Tensor:
    """Embed a micro-batch of texts: float32[D, dimension], before shortening (Matryoshka) and normalization."""
    return _embed(model, settings, batch)[0]


def embed_to_train(
    model: CausalModel, settings: Embedding, batch: TokenBatch, unit: float
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """As `embed`, with the losses of the routers as of `CausalModel.with_routers`. unit: the weight of each text in them."""
    units = torch.full(batch.supervised.shape, unit)  # [D]
    return model.with_routers(batch, units, partial(_embed, model, settings, batch))


def _embed(
    model: CausalModel, settings: Embedding, batch: TokenBatch, **options: Any
) -> tuple[torch.Tensor, Any]:
    """The embeddings, and the output of the decoder. options: of the decoder."""
    assert batch.pool is not None
    out = text_output(model, batch, attention=settings.attention, window=settings.window, **options)
    states = out.last_hidden_state  # [B, T, H]
    return finish(pool(states, batch.pool, settings.pooling), model.projection), out


class Embedder:
    """Embeds any number of texts of any length."""

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        settings: Embedding,
        *,
        dimension: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """dimension: shorten the embeddings to it (Matryoshka). max_length: in tokens, by default that of training."""
        self.model = model
        self.settings = settings
        self.dimension = dimension or settings.dimension
        self.max_length = max_length or settings.max_length
        self.truncated = 0
        """Number of texts so far that were longer than `max_length` and were truncated at the end."""
        self._encoder = TextEncoder(tokenizer, settings.format)

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Embed texts: float32[texts, dimension], in order. DataError for an empty text."""
        return self._encode(texts, instruction, None)

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> list[TextTokens]:
        """The tokens by which texts are embedded, at most `max_length` of each. DataError as for `TextEncoder`."""
        return self._encoder([(instruction, text) for text in texts], self.max_length)

    def encode_with_key_values(
        self, texts: Sequence[str], instruction: str | None = None
    ) -> tuple[np.ndarray, list[KeyValues]]:
        """As `encode`, and the key-values of each text on the CPU, from the same forward pass. ModelError if it has none."""
        require_key_values(self.model)
        found: dict[int, KeyValues] = {}
        return self._encode(texts, instruction, found), [found[number] for number in range(len(texts))]

    def _encode(
        self, texts: Sequence[str], instruction: str | None, key_values: dict[int, KeyValues] | None
    ) -> np.ndarray:
        """key_values: filled with those of each text, if given."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        if not len(texts):
            return vectors
        encoded = self.tokenize(texts, instruction)
        for number, text in enumerate(encoded):
            if text.is_empty:
                raise DataError(f"text {number} is empty: it has no token to pool", hint="remove the text")
        self.truncated += sum(text.cut > 0 for text in encoded)
        lengths = np.array([len(text.input_ids) for text in encoded])
        order = np.argsort(
            -lengths, kind="stable"
        )  # longest first: texts of similar length need little padding
        max_tokens = BATCH_TOKENS.get(self.model.device.type, 32768)
        if rope.follows_length(self.model.base):
            max_tokens = 1  # one text per pass: a longer text would change the RoPE frequencies of the others
        for part in _parts(order, lengths, max_tokens):
            pieces = [(encoded[i].input_ids, np.array(encoded[i].spans)) for i in part]
            layout = self.model.layout if key_values is None else "rows"
            batch = lay_out_texts(pieces, layout).to(self.model.device)
            with self.model.inference_mode():
                if key_values is None:
                    found = embed(self.model, self.settings, batch)
                else:
                    found, caches = embed_with_key_values(self.model, self.settings, batch)
                    key_values |= {int(number): one.cpu() for number, one in zip(part, caches, strict=True)}
            short = shorten(found, self.dimension, normalize=self.settings.normalize)
            vectors[part] = short.cpu().numpy()
        return vectors


def _parts(order: np.ndarray, lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Split texts, given longest first, into parts of at most `max_tokens` padded tokens. A longer text is a part alone."""
    parts: list[list[int]] = [[]]
    for number in order:
        if parts[-1] and (len(parts[-1]) + 1) * lengths[parts[-1][0]] > max_tokens:
            parts.append([])
        parts[-1].append(int(number))
    return [np.array(part) for part in parts]
