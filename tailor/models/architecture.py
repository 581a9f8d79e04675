"""The transformers class of a base model: a causal language model with its output head, or an encoder without one; either
with a head that scores pairs of texts."""

from __future__ import annotations

from typing import Any

from tailor.plan import encoders


def auto_class(config: Any, *, scores: bool = False) -> Any:
    """AutoModel for the config of an encoder, else AutoModelForCausalLM. scores: the class with a scoring head."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    if scores:
        return AutoModelForSequenceClassification
    return AutoModel if encoders.is_encoder(config.to_dict()) else AutoModelForCausalLM


def from_config(config: Any, *, scores: bool = False, **options: Any) -> Any:
    """The network of a transformers config, with random weights. scores: the class with a scoring head, for which the config is
    ready (`scoring_head.configure`). options: as for `AutoModel.from_config`."""
    return without_pooler(auto_class(config, scores=scores).from_config(config, **options))


def without_pooler(network: Any) -> Any:
    """Remove BERT's pooler, which computes a classification feature that no embedding uses."""
    if encoders.is_encoder(network.config.to_dict()) and hasattr(network, "pooler"):
        network.pooler = None
    return network
