"""Tiny random models of further mixtures of experts, beside those of `mixtures`."""

from __future__ import annotations

from typing import Any

from tests.helpers.family import DENSE, Family
from tests.helpers.mixtures import GROUPS, LATENT, ROUTED, SHARED

CHOSEN: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}

ROUTED_FAMILIES = (
    # In bf16 its own attention rounds so much that other experts are chosen, unless all are.
    Family("gpt-oss", "gpt_oss", {**DENSE, **CHOSEN, "head_dim": 16, "num_experts_per_tok": 4}),
    Family("GLM-4.7-Flash", "glm4_moe_lite", {**DENSE, **SHARED, **GROUPS, **LATENT}),
    Family("dots.llm1", "dots1", {**DENSE, **SHARED, **GROUPS, "head_dim": 16}),
    Family(
        "ERNIE 4.5 MoE",
        "ernie4_5_moe",
        {
            **DENSE,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 1,
        },
    ),
    Family(
        "HunYuan V1 MoE",
        "hunyuan_v1_moe",
        {**DENSE, "head_dim": 16, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 32},
    ),
    Family("Phi-3.5-MoE", "phimoe", {**DENSE, **CHOSEN, "sliding_window": 16}),
    Family(
        "MiniMax-M2",
        "minimax_m2",
        {**DENSE, **CHOSEN, "head_dim": 16, "rotary_dim": 8},
    ),
    Family(
        "JetMoe",
        "jetmoe",
        {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "kv_channels": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "initializer_range": 0.1,
        },
    ),
    Family("FlexOlmo", "flex_olmo", {**DENSE, "num_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "EXAONE MoE",
        "exaone_moe",
        {
            **DENSE,
            **ROUTED,
            "num_experts": 4,
            "num_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    Family("Solar Open", "solar_open", {**DENSE, **SHARED, **GROUPS, "head_dim": 16}),
)
