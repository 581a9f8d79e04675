"""A tiny random model of each family, made by transformers from a configuration."""

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


DENSE = {**WIDTHS, **SPREAD}
FAMILIES: dict[str, Family] = {
    family.model_type if family.name != "Llama 3" else "llama3": family
    for family in (
        Family("Llama 2", "llama", {**DENSE, "num_key_value_heads": 4}),
        Family(
            "Llama 3",
            "llama",
            {
                **DENSE,
                "tie_word_embeddings": True,
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 512,
                },
            },
        ),
        Family("Mistral", "mistral", {**DENSE, "sliding_window": 16}),
        Family("Qwen2, Qwen2.5", "qwen2", DENSE),
        Family("Qwen3", "qwen3", {**DENSE, "head_dim": 16}),
        Family("Gemma", "gemma", {**DENSE, "head_dim": 16}),
        Family("Gemma 2", "gemma2", {**DENSE, "head_dim": 16, "sliding_window": 16}),
        Family("Gemma 3 (text)", "gemma3_text", {**DENSE, "head_dim": 16, "sliding_window": 16}),
        Family("SmolLM3", "smollm3", DENSE),
        Family("OLMo 2", "olmo2", DENSE),
        Family("Phi-1, Phi-1.5, Phi-2", "phi", {**DENSE, "num_key_value_heads": 4}),
        Family("Phi-3, Phi-4", "phi3", DENSE),
        Family(
            "OPT",
            "opt",
            {
                "hidden_size": 64,
                "ffn_dim": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 256,
                "word_embed_proj_dim": 64,
                "init_std": 0.1,
                "dropout": 0.0,
            },
        ),
        Family("Bloom", "bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **SPREAD}),
        Family(
            "GPT-NeoX (Pythia)",
            "gpt_neox",
            {
                **DENSE,
                "max_position_embeddings": 256,
            },
        ),
        Family("Mixtral", "mixtral", {**DENSE, "num_local_experts": 4}),
        Family(
            "Qwen2-MoE",
            "qwen2_moe",
            {
                **DENSE,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32,
            },
        ),
        Family(
            "Qwen3-MoE",
            "qwen3_moe",
            {
                **DENSE,
                "head_dim": 16,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
            },
        ),
        Family("Mamba", "mamba", {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, **SPREAD}),
        Family(
            "Mamba 2",
            "mamba2",
            {
                "hidden_size": 64,
                "state_size": 8,
                "num_hidden_layers": 2,
                "num_heads": 4,
                "head_dim": 32,
                "n_groups": 2,
                "chunk_size": 16,
                **SPREAD,
            },
        ),
        Family(
            "Jamba",
            "jamba",
            {
                **DENSE,
                "num_experts": 4,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "mamba_d_state": 8,
                "mamba_dt_rank": 4,
                "use_mamba_kernels": False,
            },
        ),
        Family(
            "Qwen3-Next",
            "qwen3_next",
            {
                **DENSE,
                "head_dim": 16,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
        Family(
            "Falcon-H1",
            "falcon_h1",
            {
                **DENSE,
                "mamba_d_ssm": 64,
                "mamba_n_heads": 4,
                "mamba_d_head": 16,
                "mamba_n_groups": 1,
                "mamba_d_state": 8,
                "mamba_chunk_size": 16,
            },
        ),
    )
}
