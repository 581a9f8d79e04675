"""`embedding.json` and `projection.safetensors`: how a trained model makes embeddings.

They are in the artifact's folder (adapter/ or model/), and everything that embeds with the artifact reads them. Without
its projection a model would give different embeddings, so that a missing projection is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.errors import ModelError
from tailor.layout import EMBEDDING, PROJECTION
from tailor.models.embedding.pooling import Pooling
from tailor.spec.methods.base import EmbeddingMethod, TextAttention
from tailor.store.json_files import Count, JsonFile, Positive, made

Window = Literal["keep", "widen"]


@dataclass(frozen=True)
class Embedding:
    """The contents of `embedding.json`."""

    pooling: Pooling = "mean"
    attention: TextAttention = "bidirectional"
    window: Window = "keep"
    """For a model with sliding-window attention, unless `attention` is causal: `keep` the window or `widen` it to the text."""
    normalize: bool = True
    dimension: Count = 0
    """Size of an embedding."""
    projection: bool = False
    """Whether a linear layer (`projection.safetensors`) is applied after pooling, before normalization."""
    matryoshka: tuple[int, ...] = ()
    """Sizes that an embedding can be shortened to: keep the first numbers, then normalize again."""
    max_length: Positive | None = None
    """Maximum tokens of a text in training, instruction included."""
    format: TextFormat = GRITLM
    """The format of instruction and text."""

    @classmethod
    def of(cls, spec: EmbeddingMethod, hidden: int = 0, max_length: int | None = None) -> Embedding:
        """The settings of a recipe. hidden: H, the size of the model's hidden states."""
        return cls(
            pooling=spec.pooling,
            attention=spec.attention,
            window=spec.window,
            normalize=spec.normalize,
            dimension=spec.projection or hidden,
            projection=spec.projection is not None,
            matryoshka=tuple(sorted(spec.matryoshka)),
            max_length=max_length,
        )

    def write(self, folder: Path, projection: Mapping[str, torch.Tensor] | None) -> None:
        """Write the files into `folder`. projection: its weight and bias, saved as float32; None without one."""
        from safetensors.torch import save_file

        assert self.projection == (projection is not None)
        (folder / EMBEDDING).write_text(EMBEDDING_FILE.text(asdict(self)))
        if projection is not None:
            weights = {name: value.detach().float().cpu().contiguous() for name, value in projection.items()}
            save_file(weights, folder / PROJECTION)

    @classmethod
    def read(cls, folder: Path, url: str) -> tuple[Embedding, nn.Linear | None]:
        """Read the settings and the projection in `folder`. ModelError if a file is missing or damaged. url: for messages."""
        if not (folder / EMBEDDING).is_file():
            raise ModelError(
                f"{url} is not an embedding model: it has no {EMBEDDING}",
                hint="give a run that was trained with method gritlm",
            )
        settings = made(cls, EMBEDDING_FILE.read_path(folder / EMBEDDING, f"{url}/{EMBEDDING}"))
        return settings, settings.read_projection(folder, url) if settings.projection else None

    def read_projection(self, folder: Path, url: str) -> nn.Linear:
        """Read the projection in `folder`, frozen. ModelError if it is missing or damaged. url: for messages."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(folder / PROJECTION)
            out, width = weights["weight"].shape
            projection = nn.Linear(width, out)
            projection.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError):
            raise ModelError(
                f"{url}/{PROJECTION} is missing or damaged; without it the embeddings would be wrong",
                hint="copy the artifact again",
            ) from None
        assert torch.is_tensor(projection.weight)
        return projection.requires_grad_(False)


EMBEDDING_FILE = JsonFile(
    Embedding,
    "copy the artifact again",
    required=("pooling", "attention", "window", "normalize", "dimension", "projection", "format"),
)
