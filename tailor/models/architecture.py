"""The transformers class of a base model: a causal language model with its output head, or an encoder without one."""

from __future__ import annotations

from typing import Any

from tailor.plan import encoders


def auto_class(config: Any) -> Any:
    """AutoModel for the config of an encoder, else AutoModelForCausalLM."""
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModel if encoders.is_encoder(config.to_dict()) else AutoModelForCausalLM


def from_config(config: Any, **options: Any) -> Any:
    """The network of a transformers config, with random weights. options: as for `AutoModel.from_config`."""
    return without_pooler(auto_class(config).from_config(config, **options))


def without_pooler(network: Any) -> Any:
    """Remove BERT's pooler, which computes a classification feature that no embedding uses."""
    if encoders.is_encoder(network.config.to_dict()) and hasattr(network, "pooler"):
        network.pooler = None
    return network
