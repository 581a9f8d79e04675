"""Tiny random mixtures of experts: one per way in which transformers routes, stores or names experts."""

from __future__ import annotations

from typing import Any

from tests.helpers.family import DENSE, Family

ROUTED: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED: dict[str, Any] = {**ROUTED, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
GROUPS: dict[str, Any] = {"n_group": 1, "topk_group": 1}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
MIXTURES = {
    family.model_type: family
    for family in (
        Family("Mixtral", "mixtral", {**DENSE, "num_local_experts": 4}),
        Family(
            "Qwen2-MoE",
            "qwen2_moe",
            {**DENSE, **ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 32},
        ),
        Family("Qwen3-MoE", "qwen3_moe", {**DENSE, **ROUTED, "head_dim": 16, "num_experts": 4}),
        Family(
            "gpt-oss", "gpt_oss", {**DENSE, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
        ),
        Family("OLMoE", "olmoe", {**DENSE, "num_experts": 4, "num_experts_per_tok": 2}),
        Family("DeepSeek-V2", "deepseek_v2", {**DENSE, **SHARED, **GROUPS, **LATENT}),
        Family("DeepSeek-V3", "deepseek_v3", {**DENSE, **SHARED, **GROUPS, **LATENT}),
        Family("GLM-4-MoE", "glm4_moe", {**DENSE, **SHARED, **GROUPS, "head_dim": 16}),
        Family(
            "Llama 4",
            "llama4_text",
            {
                **DENSE,
                "head_dim": 16,
                "intermediate_size_mlp": 64,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
                "interleave_moe_layer_step": 1,
                "no_rope_layers": [1, 0],
            },
        ),
        Family("GraniteMoe", "granitemoe", {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2}),
        Family(
            "GraniteMoe shared",
            "granitemoeshared",
            {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
        ),
        Family(
            "Qwen3-Next",
            "qwen3_next",
            {
                **DENSE,
                **ROUTED,
                "head_dim": 16,
                "num_experts": 4,
                "shared_expert_intermediate_size": 32,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
    )
}
