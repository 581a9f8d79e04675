"""Tiny networks with activation beacons, whose weights differ from the base's as after training."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tailor.models.beacon.model import BeaconModel
from tailor.models.beacon.modules import add_beacons
from tailor.spec.model import Beacon

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24}),
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}


def network(family: str = "llama", **overrides: Any) -> Any:
    """A random base of two layers, in evaluation mode."""
    config, kind, own = FAMILIES[family]
    torch.manual_seed(0)
    made = kind(
        config(
            **{
                "vocab_size": 261,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 4096,
                "initializer_range": 0.15,
                "tie_word_embeddings": False,
                "eos_token_id": 2,
                **own,
                **overrides,
            }
        )
    )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.2)
    return made.eval()


def with_beacons(made: Any, **spec: Any) -> BeaconModel:
    """The network with beacons whose weights were moved at random."""
    found = add_beacons(made, Beacon(**{"window": 16, "ratios": [2, 4, 8], **spec}))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    assert found is made.beacons
    return BeaconModel(made).eval()


def ids(rows: int, tokens: int) -> torch.Tensor:
    """Random tokens, int64[rows, tokens]."""
    return torch.randint(3, 261, (rows, tokens), generator=torch.Generator().manual_seed(2))
