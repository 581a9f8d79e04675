"""Verifies the merge of a model that only embeds: compares the embeddings of the merged model with those of base and adapter.

Its logits mean nothing: training changed the hidden states without the output head. Both models compute in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tailor.artifacts import verify
from tailor.artifacts.inputs import Source
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.encode.embedding_examples import TextEncoder
from tailor.encode.tokenizer import load_tokenizer
from tailor.models.embedding.embedder import embed
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.settings import Embedding
from tailor.models.load import DTYPES

TOLERANCE = 0.03
"""Largest allowed mean relative error of an embedding, for an adapter whose own effect is much larger.

On a tiny Llama, rounding to bfloat16 gives 0.004 to 0.007, merging into the unquantized base of an nf4 run 0.2.
"""
SHARE = 0.5
"""The error of a merge may be at most this share of the adapter's own effect. KL divergence, whose share is 0.25, is quadratic."""
NOISE = 1e-5
"""Error that is always allowed: another order of float32 sums can cause it."""

Text = tuple[np.ndarray, np.ndarray]
"""Token ids, int[n], and spans of the pooled tokens, int[1, 2]."""


@dataclass(frozen=True)
class EmbeddingFigures:
    """Measured differences between the embeddings of a merged model and of the trained one, before normalization."""

    rows: str
    """Description of the compared texts."""
    texts: int
    error: float
    """Mean of the relative errors ‖merged − trained‖ / ‖trained‖."""
    max_error: float
    min_cosine: float
    adapter_error: float
    """The same mean for the base without the adapter: the adapter's own effect."""
    check: verify.Check = "embeddings"

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def lines(self) -> list[str]:
        """The result, for the user."""
        line = (
            f"verified on {self.rows}: relative error of an embedding {self.error:.2e}, at most {self.max_error:.2e} "
            f"(the adapter's own effect: {self.adapter_error:.2e}); cosine at least {self.min_cosine:.6f}"
        )
        return [line]

    def limit(self, tolerance: float | None) -> float:
        """The largest allowed mean relative error. tolerance: the user's own."""
        return tolerance if tolerance is not None else max(NOISE, min(TOLERANCE, SHARE * self.adapter_error))

    def refusal(self, tolerance: float | None) -> str | None:
        """Why the merge fails verification; None when it passes."""
        limit = self.limit(tolerance)
        if math.isfinite(self.max_error) and self.error <= limit:
            return None
        return (
            f"its embeddings differ from those of base and adapter as trained: relative error {self.error:.2e} (limit {limit:.1e}), "
            f"cosine down to {self.min_cosine:.6f}"
        )


def by_embeddings(
    folder: Path, source: Source, adapter: SavedAdapter, names: dict[str, str], device: torch.device
) -> EmbeddingFigures:
    """Compare the embeddings of the merged model in `folder` with those of base and adapter as trained.

    One model is in memory at a time. ModelError if the model makes no embeddings.
    """

    from tailor.artifacts.load import load_adapted

    settings, projection = Embedding.read(source.folder, source.url)
    texts, what = _texts(folder, source, settings)
    trained = load_adapted(source.folder, source.url, source.base_record, source.spec, device)
    verify.in_float32(trained, DTYPES[source.base_record.dtype])
    expected = _embeddings(trained, settings, projection, texts, device)  # [N, E]
    base = _embeddings(trained, settings, projection, texts, device, without_adapter=True)  # [N, E]
    del trained
    model = verify.load_merged(folder, source, device)
    settings, projection = Embedding.read(folder, str(folder))
    merged = _embeddings(model, settings, projection, texts, device)  # [N, E]
    errors = _errors(merged, expected)
    cosines = torch.nn.functional.cosine_similarity(merged, expected, dim=-1)  # [N]
    return EmbeddingFigures(
        what,
        len(texts),
        float(errors.mean()),
        float(errors.max()),
        float(cosines.min()),
        float(_errors(base, expected).mean()),
    )


def _errors(vectors: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Relative error of each vector: float64[N]. Infinite where a number is not finite."""
    errors = (vectors - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)
    return errors.nan_to_num(math.inf, math.inf, math.inf)


def _embeddings(
    network: Any,
    settings: Embedding,
    projection: nn.Linear | None,
    texts: Sequence[Text],
    device: torch.device,
    *,
    without_adapter: bool = False,
) -> torch.Tensor:
    """Embeddings before normalization, float64[N, E] on the CPU. Texts are not batched, so there is no padding."""
    from tailor.artifacts.load_embedder import causal_model

    model = causal_model(network)
    model.projection = None if projection is None else projection.to(device)
    found = []
    with network.disable_adapter() if without_adapter else nullcontext(), model.inference_mode():
        for text in texts:
            batch = lay_out_texts([text], model.layout).to(device)
            found.append(embed(model, settings, batch)[0].double().cpu())
    return torch.stack(found)


def _texts(folder: Path, source: Source, settings: Embedding) -> tuple[list[Text], str]:
    """Texts to compare on, and their description: of the run's rows, or built-in ones if its tokens are not available."""
    examples, what = verify.examples_of(source.run)
    if examples:
        spans = [(int(one.spans[0][0]), int(one.spans[-1][1])) for one in examples]
        stops = [min(stop, max(verify.LENGTH, start + 16)) for start, stop in spans]
        return [
            (one.input_ids[:stop], np.array([[start, stop]]))
            for one, (start, _), stop in zip(examples, spans, stops, strict=True)
        ], what
    encoder = TextEncoder(load_tokenizer(str(folder)), settings.format)
    encoded = encoder([(None, text) for text in verify.TEXTS])
    return [(text.input_ids, np.array(text.spans)) for text in encoded], f"{len(encoded)} built-in texts"
