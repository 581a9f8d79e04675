"""`embedding.json` and `projection.safetensors`: how a trained model makes embeddings.

They are in the artifact's folder (adapter/ or model/), and everything that embeds with the artifact reads them. Without
its projection a model would give different embeddings, so that a missing projection is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.encode.published_embedder import read_published, text_format
from tailor.errors import ModelError
from tailor.layout import EMBEDDING, MODEL_CONFIG, PROJECTION
from tailor.models.embedding.pooling import Pooling
from tailor.plan import encoders
from tailor.plan.facts import ModelFacts
from tailor.plan.rope import positions
from tailor.spec.methods.base import EmbeddingMethod, TextAttention
from tailor.store.json_files import OBJECT, Count, JsonFile, Positive, made

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
    def of(
        cls,
        spec: EmbeddingMethod,
        hidden: int = 0,
        max_length: int | None = None,
        format: TextFormat = GRITLM,
    ) -> Embedding:
        """The settings of a recipe. hidden: H, the size of the model's hidden states. format: of the base model's texts."""
        return cls(
            pooling=spec.pooling,
            attention=spec.attention,
            window=spec.window,
            normalize=spec.normalize,
            dimension=spec.projection or hidden,
            projection=spec.projection is not None,
            matryoshka=tuple(sorted(spec.matryoshka)),
            max_length=max_length,
            format=format,
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
            if (published := _published(folder, url)) is not None:
                return published, None
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


def _published(folder: Path, url: str) -> Embedding | None:
    """The settings of an encoder in the layout of sentence-transformers, such as all-MiniLM-L6-v2; None for another model."""
    config = OBJECT.read_path(folder / MODEL_CONFIG) if (folder / MODEL_CONFIG).is_file() else {}
    if not encoders.is_encoder(config) or (found := read_published(str(folder))) is None:
        return None
    found.require_supported(url)
    return Embedding(
        pooling=cast(Pooling, found.pooling),
        normalize=found.normalize,
        dimension=ModelFacts.from_config(config).hidden,
        max_length=min(filter(None, (found.max_length, positions(config))), default=None),
        format=text_format(str(folder)),
    )


EMBEDDING_FILE = JsonFile(
    Embedding,
    "copy the artifact again",
    required=("pooling", "attention", "window", "normalize", "dimension", "projection", "format"),
)
