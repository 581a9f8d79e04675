"""A tiny random model of a family, made by transformers from a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.models import byte_tokenizer

WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
COMMON: dict[str, Any] = {"vocab_size": 261, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Large enough that a mistake shows, small enough that no value is lost.
SPREAD: dict[str, Any] = {"initializer_range": 0.1}
DENSE = {**WIDTHS, **SPREAD}


@dataclass(frozen=True)
class Family:
    """What stands in the table, the model's type in transformers, and the sizes of a tiny one."""

    name: str
    model_type: str
    sizes: dict[str, Any] = field(default_factory=dict)

    def make(self, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
        """A random model in `folder`, with the byte tokenizer."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(self.model_type, **{**COMMON, **self.sizes, **overrides})
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        return byte_tokenizer(folder)
