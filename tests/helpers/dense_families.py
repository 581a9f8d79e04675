"""Tiny random models of the families whose layers are all attention and a dense feed-forward block."""

from __future__ import annotations

from typing import Any

from tests.helpers.family import DENSE, SPREAD, WIDTHS, Family

HEAD: dict[str, Any] = {**DENSE, "head_dim": 16}
EVEN: dict[str, Any] = {**DENSE, "num_key_value_heads": 4}
"""As many key heads as query heads."""
WINDOW: dict[str, Any] = {"sliding_window": 16}
MIXED: dict[str, Any] = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
"""Multi-head latent attention: keys of 24 values per head, values of 16."""
GPT: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, **SPREAD}
SHORT: dict[str, Any] = {"max_position_embeddings": 256}
LLAMA_3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}

DENSE_FAMILIES = (
    Family("Llama 2", "llama", EVEN),
    Family(
        "Llama 3",
        "llama",
        {
            **DENSE,
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
            "rope_parameters": LLAMA_3_ROPE,
        },
    ),
    Family("Mistral", "mistral", {**DENSE, **WINDOW}),
    Family("Ministral", "ministral", {**HEAD, **MIXED}),
    Family("Ministral 3", "ministral3", HEAD),
    Family("Qwen2, Qwen2.5", "qwen2", DENSE),
    Family("Qwen3", "qwen3", HEAD),
    Family("Gemma", "gemma", HEAD),
    Family("Gemma 2", "gemma2", {**HEAD, **WINDOW}),
    Family("Gemma 3 (text)", "gemma3_text", {**HEAD, **WINDOW}),
    Family(
        "Gemma 4 (text)",
        "gemma4_text",
        {
            **HEAD,
            **MIXED,
            "global_head_dim": 16,
            "vocab_size_per_layer_input": 261,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 0,
        },
    ),
    # The embedding of padding is zero in a random model, of which AltUp has no gradient.
    Family(
        "Gemma 3n (text)",
        "gemma3n_text",
        {
            **HEAD,
            **MIXED,
            "pad_token_id": 2,
            "intermediate_size": [64, 64],
            "vocab_size_per_layer_input": 261,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    Family("VaultGemma", "vaultgemma", {**HEAD, **MIXED}),
    Family("SmolLM3", "smollm3", DENSE),
    Family("OLMo", "olmo", DENSE),
    Family("OLMo 2", "olmo2", DENSE),
    Family("OLMo 3", "olmo3", {**DENSE, **MIXED}),
    Family("Phi-1, Phi-1.5, Phi-2", "phi", EVEN),
    Family("Phi-3, Phi-4", "phi3", DENSE),
    Family("GLM", "glm", HEAD),
    Family("GLM-4", "glm4", HEAD),
    Family("Granite", "granite", DENSE),
    Family("Cohere Command R", "cohere", DENSE),
    Family("Cohere Command R7B, A", "cohere2", {**DENSE, **MIXED}),
    Family("StarCoder2", "starcoder2", {**DENSE, **WINDOW}),
    Family("StableLM", "stablelm", DENSE),
    Family("EXAONE 4", "exaone4", {**DENSE, **MIXED, "sliding_window_pattern": 2}),
    Family("ERNIE 4.5", "ernie4_5", HEAD),
    Family("HunYuan V1", "hunyuan_v1_dense", HEAD),
    Family("Seed-OSS", "seed_oss", HEAD),
    Family("Apertus", "apertus", DENSE),
    Family("Arcee", "arcee", DENSE),
    Family("Helium", "helium", HEAD),
    Family("BitNet", "bitnet", DENSE),
    Family("DiffLlama", "diffllama", EVEN),
    Family("nanochat", "nanochat", DENSE),
    Family("Nemotron", "nemotron", DENSE),
    Family("MiniCPM3", "minicpm3", {**DENSE, **LATENT, "scale_emb": 1, "dim_model_base": 64}),
    # transformers sets the embedding of padding to zero whenever it loads the model.
    Family("Youtu-LLM", "youtu", {**DENSE, **LATENT, "pad_token_id": None}),
    Family("Persimmon", "persimmon", EVEN),
    Family("CWM", "cwm", {**HEAD, **MIXED}),
    Family("Jais 2", "jais2", DENSE),
    Family("HyperCLOVA X", "hyperclovax", DENSE),
    Family(
        "Falcon",
        "falcon",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **SPREAD},
    ),
    Family(
        "OPT",
        "opt",
        {
            "hidden_size": 64,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 64,
            "init_std": 0.1,
            "dropout": 0.0,
            **SHORT,
        },
    ),
    Family("Bloom", "bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **SPREAD}),
    Family("MPT", "mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, **SPREAD}),
    Family("GPT-2", "gpt2", {**GPT, "n_positions": 256}),
    Family("GPT-J", "gptj", {**GPT, "rotary_dim": 8}),
    Family("CodeGen", "codegen", {**GPT, "rotary_dim": 8}),
    Family("GPT-BigCode (StarCoder)", "gpt_bigcode", {**GPT, "n_positions": 256}),
    Family(
        "GPT-Neo",
        "gpt_neo",
        {
            "hidden_size": 64,
            "num_heads": 4,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            **SPREAD,
            **SHORT,
        },
    ),
    Family("GPT-NeoX (Pythia)", "gpt_neox", {**DENSE, **SHORT}),
    Family(
        "XGLM",
        "xglm",
        {
            "d_model": 64,
            "ffn_dim": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "init_std": 0.1,
            "dropout": 0.0,
            **SHORT,
        },
    ),
    Family("BioGPT", "biogpt", {**WIDTHS, **SPREAD, **SHORT, "hidden_dropout_prob": 0.0}),
)
