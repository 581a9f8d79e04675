"""What the plan knows of the data, the model and the machine before it decides anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataFacts:
    """The prepared data, in numbers. Token counts are of one epoch."""

    tokens_url: str
    fingerprint: str
    examples: int
    evaluation_examples: int
    tokens: int
    supervised_tokens: int
    longest: int
    """Tokens of the longest example."""
    longest_row: int
    """Most tokens in one row."""
    rows_per_batch: int
    """Most rows in one batch."""
    steps_per_epoch: int
    """Steps of the first epoch."""
    steps: int
    """Steps of the whole run."""
    first_step: int = 0
    """The step at which these data begin."""


@dataclass(frozen=True)
class Hardware:
    """Where one worker runs."""

    device: str
    """`cuda` or `cpu`."""
    memory_bytes: int
    """Memory of one worker: its GPU's, or its share of the host's."""
    bf16: bool
    """Whether bf16 arithmetic is fast here."""


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder, read from its `config.json`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    """Feed-forward blocks of a layer; 1 unless it is a mixture of experts."""
    tied: bool
    positions: int | None
    """Longest sequence the model was made for, in tokens, where the config says it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelFacts:
        """Reads Hugging Face's usual names and their older synonyms (GPT-2's, OPT's, Bloom's)."""
        config = {**config, **(config.get("text_config") or {})}

        def first(*names: str, default: Any = None) -> Any:
            return next((config[name] for name in names if config.get(name) is not None), default)

        hidden = int(first("hidden_size", "n_embd", "d_model", default=0))
        heads = int(first("num_attention_heads", "n_head", default=1))
        positions = first("max_position_embeddings", "n_positions")
        return cls(
            hidden=hidden,
            intermediate=int(
                first("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)
            ),
            layers=int(first("num_hidden_layers", "n_layer", default=1)),
            heads=heads,
            kv_heads=int(first("num_key_value_heads", default=heads)),
            head_dim=int(first("head_dim", default=hidden // heads)),
            vocabulary=int(first("vocab_size", default=0)),
            experts=int(first("num_local_experts", "num_experts", "n_routed_experts", default=1)),
            tied=bool(config.get("tie_word_embeddings", False)),
            positions=None if positions is None else int(positions),
        )

    @property
    def kv(self) -> int:
        """Width of keys (and of values) over all key-value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear modules but the output head."""
        width = self.heads * self.head_dim
        feed_forward = 3 * self.hidden * self.intermediate * self.experts
        return self.layers * (self.hidden * (2 * width + 2 * self.kv) + feed_forward)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Adapter weights when every linear module but the head has one."""
        width = self.heads * self.head_dim
        per_layer = 2 * (self.hidden + width) + 2 * (self.hidden + self.kv)
        return self.layers * rank * (per_layer + 3 * (self.hidden + self.intermediate))
