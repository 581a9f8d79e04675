"""Tiny random models of the families with state-space, linear-attention or convolution layers."""

from __future__ import annotations

from typing import Any

from tests.helpers.family import DENSE, SPREAD, Family
from tests.helpers.mixtures import LATENT

HEAD: dict[str, Any] = {**DENSE, "head_dim": 16}
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
"""Gated delta rule."""
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

RECURRENT_FAMILIES = (
    Family("Mamba", "mamba", {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, **SPREAD}),
    Family(
        "Falcon Mamba",
        "falcon_mamba",
        {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, **SPREAD},
    ),
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
    Family("Bamba", "bamba", {**DENSE, **MAMBA, "attn_layer_indices": [1]}),
    Family(
        "Granite 4",
        "granitemoehybrid",
        {
            **DENSE,
            **MAMBA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
        },
    ),
    Family("Falcon-H1", "falcon_h1", {**DENSE, **MAMBA, "mamba_d_ssm": 64, "mamba_d_head": 16}),
    Family(
        "Nemotron-H",
        "nemotron_h",
        {
            **HEAD,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "n_groups": 1,
            "ssm_state_size": 8,
            "chunk_size": 16,
        },
    ),
    Family(
        "Zamba",
        "zamba",
        {
            **DENSE,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "num_hidden_layers": 3,
            "layers_block_type": ["hybrid", "mamba", "hybrid"],
        },
    ),
    Family(
        "Zamba2",
        "zamba2",
        {
            **DENSE,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "mamba_headdim": 32,
            "n_mamba_heads": 4,
            "chunk_size": 16,
            "num_mem_blocks": 1,
            "adapter_rank": 8,
            "num_hidden_layers": 3,
            "hybrid_layer_ids": [0, 2],  # they share their attention
            "layers_block_type": ["hybrid", "mamba", "hybrid"],
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "use_mem_rope": True,
            "use_shared_attention_adapter": False,
        },
    ),
    Family("Qwen3.5 (text)", "qwen3_5_text", {**HEAD, **DELTA}),
    Family(
        "Qwen3.5-MoE (text)",
        "qwen3_5_moe_text",
        {**HEAD, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 32},
    ),
    Family(
        "Kimi Linear",
        "kimi_linear",
        {
            **DENSE,
            **LATENT,
            **EXPERTS,
            "q_lora_rank": None,
            "n_shared_experts": 1,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    Family("OLMo Hybrid", "olmo_hybrid", {**DENSE, **DELTA}),
    Family(
        "MiniMax-01",
        "minimax",
        {
            **HEAD,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "block_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    Family("LFM2", "lfm2", {**DENSE, "conv_L_cache": 3, "layer_types": ["conv", "full_attention"]}),
    Family(
        "LFM2-MoE",
        "lfm2_moe",
        {
            **DENSE,
            **EXPERTS,
            "conv_L_cache": 3,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    Family(
        "RecurrentGemma",
        "recurrent_gemma",
        {
            **HEAD,
            "lru_width": 64,
            "attention_window_size": 16,
            "block_types": ["recurrent", "attention"],
        },
    ),
    Family(
        "xLSTM",
        "xlstm",
        {
            "hidden_size": 64,
            "num_blocks": 2,
            "num_heads": 4,
            "chunk_size": 16,
            "qk_dim_factor": 1.0,
            "v_dim_factor": 1.0,
        },
    ),
    Family(
        "RWKV-4",
        "rwkv",
        {"hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2, "context_length": 128},
    ),
)
