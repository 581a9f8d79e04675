"""`embedding.json` and `projection.safetensors`: how the model beside them makes embeddings.

Written into an artifact's folder (adapter/ or model/) and read by everything that embeds with it. Without the
projection the same weights give other embeddings, so a folder whose embedding.json names one must hold it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from tailor.encode.embedding_examples import GRITLM, TextFormat
from tailor.errors import ModelError
from tailor.layout import EMBEDDING, PROJECTION
from tailor.models.embedding.pooling import Pooling
from tailor.spec.methods.base import EmbeddingMethod

Attention = Literal["bidirectional", "causal"]
Window = Literal["keep", "widen"]


@dataclass(frozen=True)
class Embedding:
    """How texts become embeddings."""

    pooling: Pooling = "mean"
    attention: Attention = "bidirectional"
    window: Window = "keep"
    """What a sliding window of the model does to bidirectional attention."""
    normalize: bool = True
    dimension: int = 0
    """Numbers of an embedding."""
    projection: bool = False
    """Whether `projection.safetensors` stands between pooling and normalization."""
    matryoshka: tuple[int, ...] = ()
    """Shorter lengths that the model was trained for: the first so many numbers, normalized again."""
    max_length: int | None = None
    """Longest text in training, in tokens, with its instruction."""
    format: TextFormat = GRITLM
    """What stands before a text."""

    @classmethod
    def of(cls, spec: EmbeddingMethod, hidden: int = 0, max_length: int | None = None) -> Embedding:
        """What a recipe declares. hidden: width of the model's states."""
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
        """Write both files. projection: its weight and bias, which are written in float32."""
        from safetensors.torch import save_file

        assert self.projection == (projection is not None)
        (folder / EMBEDDING).write_text(json.dumps(asdict(self), indent=1) + "\n")
        if projection is not None:
            weights = {name: value.detach().float().cpu().contiguous() for name, value in projection.items()}
            save_file(weights, folder / PROJECTION)

    @classmethod
    def read(cls, folder: Path, url: str) -> tuple[Embedding, nn.Linear | None]:
        """What stands in `folder`. ModelError when there is none, or a part is missing or damaged. url: for messages."""
        if not (folder / EMBEDDING).is_file():
            raise ModelError(
                f"{url} makes no embeddings: it has no {EMBEDDING}",
                hint="name a run that was trained with gritlm",
            )
        try:
            values: dict[str, Any] = json.loads((folder / EMBEDDING).read_text())
            values["matryoshka"] = tuple(values["matryoshka"])
            values["format"] = TextFormat(**values["format"])
            found = cls(**values)
            assert found.pooling in get_args(Pooling)
            assert set(values) == {field.name for field in fields(cls)}
        except (ValueError, KeyError, TypeError, AssertionError):
            raise ModelError(f"{url}/{EMBEDDING} is damaged", hint="copy the artifact again") from None
        return found, found.read_projection(folder, url) if found.projection else None

    def read_projection(self, folder: Path, url: str) -> nn.Linear:
        """The projection in `folder`. ModelError."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(folder / PROJECTION)
            out, width = weights["weight"].shape
            projection = nn.Linear(width, out)
            projection.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError):
            raise ModelError(
                f"{url}/{PROJECTION} is missing or damaged, and without it the embeddings are others",
                hint="copy the artifact again",
            ) from None
        assert torch.is_tensor(projection.weight)
        return projection.requires_grad_(False)
