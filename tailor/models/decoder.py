"""The decoder of a transformers model: the part between its token ids and its last hidden states. Of an encoder, all of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from tailor.models import scoring_head
from tailor.plan import encoders


def decoder_of(base: Any) -> Any:
    """The module that gives the last hidden states of a causal language model, or an encoder itself."""
    if scoring_head.is_scorer(base):
        return base.base_model
    if not has_head(base):
        return base
    decoder = base.get_decoder()
    # Llama 4's text model names a base that it does not have, and then returns itself, with its output head.
    return base.model if decoder is base else decoder


def has_head(base: Any) -> bool:
    """Whether a model has an output head, and so can generate. An encoder has none, and neither has one that scores pairs."""
    return base.get_output_embeddings() is not None


def is_encoder(base: Any) -> bool:
    """Whether a model reads a text in both directions."""
    return encoders.is_encoder(base.config.to_dict())


def head_of(base: Any) -> nn.Module:
    """The output head; a module without weights for an encoder, and of one that scores pairs its scoring head."""
    if scoring_head.is_scorer(base):
        return scoring_head.modules_of(base)
    head = base.get_output_embeddings()
    return nn.Identity() if head is None else head
