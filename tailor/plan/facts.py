"""The inputs of the plan: facts about the data, the model and the hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tailor.plan import encoders, experts, rope
from tailor.plan.experts import Stacks
from tailor.plan.outline import Outline
from tailor.spec.adapter import Adapter
from tailor.spec.model import TOKEN_TABLES

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
"""Model types whose embedding and output head share one weight, unless their `config.json` says otherwise."""
UNGATED = frozenset(
    ["bloom", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi", "starcoder2"]
) | (encoders.ENCODERS - {"modernbert"})
"""Model types whose feed-forward block has two matrices. Others have three (a gated block)."""
STATE_SPACE = frozenset(("falcon_mamba", "mamba", "mamba2"))
"""Model types all of whose layers are state-space mixers."""
RECURRENT = STATE_SPACE | {
    *("bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe"),
    *("minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
    *("recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"),
}
"""Model types with layers that carry a state from token to token."""


def is_recurrent(config: Mapping[str, Any]) -> bool:
    """Whether a model has layers that carry a state from token to token."""
    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    only_attention = bool(kinds) and set(kinds) == {"attention"}
    return config.get("model_type") in RECURRENT and not only_attention


def carries_over(config: Mapping[str, Any]) -> str | None:
    """Why a model reads a document from its start on in one piece, as far as its `config.json` says; else None."""
    kind = config.get("model_type")
    if is_recurrent(config):
        return "its recurrent layers carry their state over from one document to the next"
    attention = config.get("attn_config")
    alibi = attention.get("alibi", True) if isinstance(attention, Mapping) else True
    if kind == "bloom" or (kind == "falcon" and config.get("alibi")) or (kind == "mpt" and alibi):
        return "its position biases (ALiBi) are counted from the start of the row"
    return None


def unpackable(config: Mapping[str, Any]) -> str | None:
    """Why packed documents of a model cannot be isolated, as far as its `config.json` says; else None.

    The recurrent layers of most models start each document with an empty state (`models.recurrence`).
    """
    kind = config.get("model_type")
    if kind in RECURRENT - {"rwkv", "xlstm"}:
        return None
    if kind in ("falcon", "xglm") and not config.get("alibi"):
        return "its attention does not separate the documents of a row"
    return carries_over(config)


@dataclass(frozen=True)
class DataFacts:
    """Sizes of the prepared data. Token counts are per epoch."""

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
    """Tokens of the longest row."""
    rows_per_batch: int
    """Maximum number of rows in a batch, as the recipe says."""
    max_rows: int
    """Maximum number of rows that a batch of the data really has, in training or evaluation."""
    steps_per_epoch: int
    """Steps of the first epoch."""
    steps: int
    """Steps of the whole run."""
    first_step: int = 0
    """The step at which training on this data begins."""
    order_version: int = 1
    """Version of the order of the batches, see `tailor.data.epoch_order.order_version`."""
    run_tokens: int | None = None
    """Tokens of the whole run, if the recipe sets `train.tokens`."""
    texts_per_batch: int = 0
    """Maximum number of texts to embed in a batch. They are not counted in `rows_per_batch` and `max_rows`."""
    longest_text: int = 0
    """Tokens of the longest text to embed."""
    smaller_than_batch: Mapping[str, int] = field(default_factory=dict)
    """Key of a batch size that no batch reaches -> what there is for a batch."""
    source_tokens: tuple[int, ...] = ()
    """Tokens of each training source in the first epoch. Empty for GRIT batches."""


@dataclass(frozen=True)
class Hardware:
    """The hardware of one worker."""

    device: str
    """`cuda` or `cpu`."""
    memory_bytes: int
    """Memory of one worker: of its GPU, or its share of the host memory."""
    bf16: bool
    """Whether the hardware computes natively in bf16."""


KERNEL_TYPES = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text"),
    *("granite", "glm4", "olmo2", "olmo3", "smollm3", "exaone4"),
)
"""Values of `model_type` that `model.kernels` accepts: decoders whose layers differ in their attention at most, so that a
comparison of a few layers holds for all."""


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder, read from its `config.json`. Numbers of parameters are counted if there is an outline, else estimated."""

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
    """Feed-forward blocks per layer; 1 unless the model is a mixture of experts."""
    active_experts: int
    """Of these, the ones that a token is routed to."""
    embedding: int
    """Width of the token embedding; most models: `hidden`."""
    tied: bool
    """Whether the embedding and the output head share one weight."""
    unsplittable: str | None
    """Why a sequence cannot be split over workers (`scale.sequence_parallel`), as far as the config says; else None."""
    positions: int | None
    """Maximum sequence length of the model, in tokens, if the config has it."""
    outline: Outline | None = None
    shared: int = 0
    """Inner width of the experts that every token goes through, together."""
    has_head: bool = True
    """Whether it has an output head. An encoder has none."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], outline: Outline | None = None) -> ModelFacts:
        """Read a `config.json`, with the older key names of GPT-2, OPT and Bloom too. outline: of the model, if it is known."""
        config = encoders.standard_keys({**config, **(config.get("text_config") or {})})

        def first(*names: str, default: Any = None) -> Any:
            return next((config[name] for name in names if config.get(name) is not None), default)

        kind = str(config.get("model_type", ""))
        hidden = int(first("hidden_size", "n_embd", "n_embed", "d_model", default=0))
        heads = 0 if kind in STATE_SPACE else int(first("num_attention_heads", "n_head", default=1))
        default_intermediate = int(config.get("expand", 2)) * hidden if kind in STATE_SPACE else 4 * hidden
        return cls(
            model_type=kind,
            hidden=hidden,
            intermediate=experts.largest(
                first(
                    "moe_intermediate_size",
                    "intermediate_size",
                    "ffn_dim",
                    "n_inner",
                    default=default_intermediate,
                )
            ),
            layers=int(first("num_hidden_layers", "n_layer", default=1)),
            heads=heads,
            kv_heads=int(first("num_key_value_heads", default=heads)) if heads else 0,
            head_dim=int(first("head_dim", default=hidden // heads)) if heads else 0,
            vocabulary=int(first("vocab_size", default=0)),
            experts=experts.total(config),
            active_experts=experts.active(config) or 1,
            embedding=int(first("word_embed_proj_dim", default=hidden)),
            tied=outline.tied if outline else bool(config.get("tie_word_embeddings", kind in TIED)),
            unsplittable=_unsplittable(config),
            positions=rope.positions(config),
            outline=outline,
            shared=experts.shared_width(config),
            has_head=not encoders.is_encoder(config),
        )

    @property
    def kv(self) -> int:
        """Total width of the keys (and of the values) of all key-value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Number of weights outside the embedding and the output head; without an outline, those in linear modules.

        The three large projections of a state-space mixer are counted like a feed-forward block.
        """
        if self.outline is not None:
            return self.outline.total - self.outline.tables
        width = self.heads * self.head_dim
        feed_forward = self._matrices * self.hidden * self.intermediate * self.experts
        return self.layers * (self.hidden * (2 * width + 2 * self.kv) + feed_forward)

    @property
    def active_parameters(self) -> int:
        """Number of weights that a token is multiplied with: the linear modules and the head, of experts only the active ones."""
        if self.outline is not None:
            inactive = self.outline.expert * (self.experts - self.active_experts) // self.experts
            return self.outline.total - inactive - (0 if self.tied else self.outline.table)
        idle = self._matrices * self.hidden * self.intermediate * (self.experts - self.active_experts)
        return self.linear_parameters - self.layers * idle + self.has_head * self.vocabulary * self.embedding

    @property
    def embedding_parameters(self) -> int:
        """Number of weights of the embedding and, if there is one that is not tied, the output head."""
        return self.table * (2 if self.has_head and not self.tied else 1)

    @property
    def table(self) -> int:
        """Number of weights of the embedding, or of the output head."""
        return self.outline.table if self.outline is not None else self.vocabulary * self.embedding

    @property
    def quantized_parameters(self) -> int:
        """Number of weights that `model.quantize` quantizes: of state-space mixers only the input projection."""
        if self.outline is not None:
            return self.outline.quantized
        if self.model_type in STATE_SPACE:
            return self.layers * 2 * self.hidden * self.intermediate
        return self.linear_parameters

    @property
    def stacks(self) -> Stacks:
        """The tensors that hold the routed experts of a layer; estimated without an outline."""
        if self.outline is not None:
            return self.outline.stacks
        if self.experts == 1:
            return {}
        sizes = self.layers, self.experts, self.hidden, self.intermediate
        return experts.estimated_stacks(*sizes, gated=self._matrices == 3)

    def adapted_modules(self) -> Iterator[tuple[str, int, int]]:
        """(name, inputs, outputs) of the linear modules that `all-linear` adapts, which excludes experts stored in one tensor
        and routers. The names are those of Llama and Mamba."""
        width = self.heads * self.head_dim
        attention = {"q": (self.hidden, width), "k": (self.hidden, self.kv), "v": (self.hidden, self.kv)}
        attention["o"] = (width, self.hidden)
        for layer in range(self.layers):
            if self.model_type in STATE_SPACE:
                yield f"backbone.layers.{layer}.mixer.in_proj", self.hidden, 2 * self.intermediate
                continue
            for name, (inputs, outputs) in attention.items():
                yield f"model.layers.{layer}.self_attn.{name}_proj", inputs, outputs
            if self.experts == 1:
                for name in ("gate", "up")[: self._matrices - 1]:
                    yield f"model.layers.{layer}.mlp.{name}_proj", self.hidden, self.intermediate
                yield f"model.layers.{layer}.mlp.down_proj", self.intermediate, self.hidden

    def adapter_parameters(self, adapter: Adapter) -> int:
        """Number of weights of an adapter and of the modules that are trained with it. Without an outline, of `all-linear`."""
        if self.outline is None:
            tables = sum(name.rsplit(".", 1)[-1] in TOKEN_TABLES for name in adapter.modules_to_save)
            adapted = (adapter.weights(*module) for module in self.adapted_modules())
            return sum(adapted) + experts.adapter_parameters(self.stacks, adapter) + tables * self.table
        return self.outline.adapter_parameters(adapter)

    @property
    def _matrices(self) -> int:
        return 2 if self.model_type in UNGATED else 3


def _unsplittable(config: Mapping[str, Any]) -> str | None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for part in (
        rope,
        *(each for each in rope.values() if isinstance(each, Mapping)),
    ):  # some configs have one entry per layer type
        kind = part.get("rope_type", part.get("type"))
        if kind in ("dynamic", "longrope"):
            return f"its RoPE frequencies ({kind}) depend on the length of the whole sequence"
    return None
