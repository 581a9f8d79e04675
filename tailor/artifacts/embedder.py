"""The embedder of a run's artefact, an adapter folder or a model folder that `embedding.json` lies in."""

from __future__ import annotations

import torch

from tailor.artifacts.load import find_artifact, load_run
from tailor.errors import ModelError
from tailor.models import attention
from tailor.models.bidirectional import check_attention
from tailor.models.causal import CausalModel, base_of
from tailor.models.embedder import Embedder
from tailor.models.embedding import Embedding
from tailor.store import Store


def load_embedder(
    url: str, *, dimension: int | None = None, max_length: int | None = None, device: str | None = None
) -> Embedder:
    """Load what embeds: a finished run, or the folder of its adapter or model. ModelError, StoreError.

    device: by default a GPU where there is one. The attention is proven as at the start of training.
    """
    store, _ = find_artifact(Store(url))
    settings, projection = Embedding.read(store.local_path(), store.url)
    loaded = load_run(url, device)
    model = causal_model(loaded.model)
    model.projection = None if projection is None else projection.to(model.device)
    check_attention(model, model.base.dtype, attention=settings.attention, window=settings.window)
    return Embedder(model, loaded.tokenizer, settings, dimension=dimension, max_length=max_length)


def causal_model(network: torch.nn.Module) -> CausalModel:
    """A loaded network with the attention that embeds without padding, where it takes that one, else with its own."""
    attention.register()
    base = base_of(network)
    try:
        base.set_attn_implementation(attention.NAME)
        model = CausalModel(network, layout="stream")
        check_attention(model, base.dtype, attention="causal")
    except (ValueError, ImportError, ModelError):
        base.set_attn_implementation(attention.stock_attention(base))
        model = CausalModel(network, layout="rows")
    return model
