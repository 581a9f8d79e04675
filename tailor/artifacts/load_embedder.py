"""Loads the artifact of a run, an adapter folder or a model folder for embedding."""

from __future__ import annotations

from typing import Any

import torch

from tailor.artifacts.find import find_artifact
from tailor.artifacts.load import Loaded, for_generation, load_artifact
from tailor.encode.tokenizer import Tokenizer
from tailor.errors import ModelError
from tailor.models import attention
from tailor.models.causal import CausalModel, base_of
from tailor.models.decoder import has_head
from tailor.models.embedding.attention import check_attention
from tailor.models.embedding.embedder import Embedder
from tailor.models.embedding.settings import Embedding
from tailor.models.own_code import NOTHING, Trust
from tailor.store import Store


def load_embedder(
    url: str,
    *,
    dimension: int | None = None,
    max_length: int | None = None,
    device: str | None = None,
    trust: Trust = NOTHING,
) -> Embedder:
    """Load an embedding model: a finished run, or its adapter or model folder. Raises ModelError and StoreError.

    device: by default a GPU if there is one. The attention mask is tested, as at the start of training.
    """
    return _embedder(url, *load_artifact(url, device, trust=trust), dimension, max_length)


def load_with_embedder(
    url: str,
    *,
    dimension: int | None = None,
    max_length: int | None = None,
    device: str | None = None,
    trust: Trust = NOTHING,
) -> tuple[Loaded, Embedder]:
    """As `load_embedder`, and the same network for generation."""
    network, tokenizer = load_artifact(url, device, trust=trust)
    loaded = for_generation(url, network, tokenizer)
    return loaded, _embedder(url, network, tokenizer, dimension, max_length)


def _embedder(
    url: str, network: Any, tokenizer: Tokenizer, dimension: int | None, max_length: int | None
) -> Embedder:
    store, _ = find_artifact(Store(url))
    settings, projection = Embedding.read(store.local_path(), store.url)
    model = causal_model(network)
    model.projection = None if projection is None else projection.to(model.device)
    check_attention(model, model.base.dtype, attention=settings.attention, window=settings.window)
    return Embedder(model, tokenizer, settings, dimension=dimension, max_length=max_length)


def causal_model(network: torch.nn.Module) -> CausalModel:
    """Wrap a loaded network for embedding: with packed sequences if its attention supports them, else with padded rows."""
    base = base_of(network)
    try:
        attention.set_attention(base)
        model = CausalModel(network, layout="stream")
        check_attention(model, base.dtype, attention="causal" if has_head(base) else "bidirectional")
    except (ValueError, ImportError, ModelError):
        base.set_attn_implementation(attention.stock_attention(base))
        model = CausalModel(network, layout="rows")
    return model
