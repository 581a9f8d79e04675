"""What the plan knows of the data, the model and the machine before it decides anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tailor.plan import rope

TIED = frozenset(
    [
        "bloom",
        "falcon",
        "falcon_mamba",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gpt2",
        "gpt_neo",
        "mamba",
        "mpt",
        "opt",
        "starcoder2",
    ]
)
"""Types of models whose embedding and head are one weight unless their `config.json` says otherwise."""
UNGATED = frozenset(
    ["bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi", "starcoder2"]
)
"""Types of models whose feed-forward block has two matrices; the others' have three."""
STATE_SPACE = frozenset(("falcon_mamba", "mamba", "mamba2"))
"""Types of models whose layers are state-space mixers alone."""
CARRIES_OVER = {
    **dict.fromkeys(
        ("falcon_h1", "falcon_mamba", "jamba", "mamba", "mamba2"),
        "the state of its recurrent layers goes on from document to document",
    ),
    "bloom": "its position biases (ALiBi) count from the start of the row",
}
"""Types of models that cannot keep packed documents apart, and why."""


@dataclass(frozen=True)
class DataFacts:
    """The prepared data, in numbers. Token counts are of one epoch."""

    tokens_url: str
    fingerprint: str
    train_fingerprint: str
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
    run_tokens: int | None = None
    """Tokens of the whole run, where the recipe declares it in tokens."""
    texts_per_batch: int = 0
    """Texts to embed in one batch, at most; they are none of its rows above."""
    longest_text: int = 0
    """Tokens of the longest text to embed."""


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

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    """0 for state-space layers."""
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    """Feed-forward blocks of a layer; 1 unless it is a mixture of experts."""
    embedding: int
    """Width of an embedding."""
    tied: bool
    across: str | None
    """What of the model looks at a whole sequence outside its attention, where the config says so."""
    positions: int | None
    """Longest sequence the model was made for, in tokens, where the config says it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelFacts:
        """Reads Hugging Face's usual names and their older synonyms (GPT-2's, OPT's, Bloom's)."""
        config = {**config, **(config.get("text_config") or {})}

        def first(*names: str, default: Any = None) -> Any:
            return next((config[name] for name in names if config.get(name) is not None), default)

        kind = str(config.get("model_type", ""))
        hidden = int(first("hidden_size", "n_embd", "n_embed", "d_model", default=0))
        heads = 0 if kind in STATE_SPACE else int(first("num_attention_heads", "n_head", default=1))
        wide = int(config.get("expand", 2)) * hidden if kind in STATE_SPACE else 4 * hidden
        return cls(
            model_type=kind,
            hidden=hidden,
            intermediate=int(
                first("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner", default=wide)
            ),
            layers=int(first("num_hidden_layers", "n_layer", default=1)),
            heads=heads,
            kv_heads=int(first("num_key_value_heads", default=heads)) if heads else 0,
            head_dim=int(first("head_dim", default=hidden // heads)) if heads else 0,
            vocabulary=int(first("vocab_size", default=0)),
            experts=int(first("num_local_experts", "num_experts", "n_routed_experts", default=1)),
            embedding=int(first("word_embed_proj_dim", default=hidden)),
            tied=bool(config.get("tie_word_embeddings", kind in TIED)),
            across=_across(config),
            positions=rope.positions(config),
        )

    @property
    def kv(self) -> int:
        """Width of keys (and of values) over all key-value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear modules but the output head. A state-space mixer's three large ones count as a block."""
        width = self.heads * self.head_dim
        feed_forward = self._matrices * self.hidden * self.intermediate * self.experts
        return self.layers * (self.hidden * (2 * width + 2 * self.kv) + feed_forward)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.embedding * (1 if self.tied else 2)

    @property
    def quantized_parameters(self) -> int:
        """Weights of the linear modules that can be quantized: of a state-space mixer its input projection alone."""
        if self.model_type in STATE_SPACE:
            return self.layers * 2 * self.hidden * self.intermediate
        return self.linear_parameters

    def lora_parameters(self, rank: int) -> int:
        """Adapter weights for `all-linear`: of a mixture's experts, which are no modules, and of its routers none."""
        if self.model_type in STATE_SPACE:
            return self.layers * rank * (self.hidden + 2 * self.intermediate)
        width = self.heads * self.head_dim
        per_layer = 2 * (self.hidden + width) + 2 * (self.hidden + self.kv)
        if self.experts == 1:
            per_layer += self._matrices * (self.hidden + self.intermediate)
        return self.layers * rank * per_layer

    @property
    def _matrices(self) -> int:
        return 2 if self.model_type in UNGATED else 3


def _across(config: Mapping[str, Any]) -> str | None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for part in (rope, *(each for each in rope.values() if isinstance(each, Mapping))):  # by kind of layer
        kind = part.get("rope_type", part.get("type"))
        if kind in ("dynamic", "longrope"):
            return f"its rotations ({kind}) depend on the longest position that is seen"
    if config.get("output_router_logits") and config.get("router_aux_loss_coef"):
        return "the balance of its experts, which is in its loss, is a product of means over each row"
    return None
