"""What stands in the `config.json` of the public models that the shipped recipes train, as far as a plan reads it."""

from __future__ import annotations

from typing import Any

BASES: dict[str, tuple[int, dict[str, Any]]] = {
    "mistralai/Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
    ),
    "meta-llama/Llama-3.1-8B": (
        8_030_261_248,
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
        },
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        8_030_261_248,
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        },
    ),
    "meta-llama/Llama-2-7b-hf": (
        6_738_415_616,
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        3_212_749_824,
        {
            "model_type": "llama",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "google/gemma-2b": (
        2_506_172_416,
        {
            "model_type": "gemma",
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
        },
    ),
    "facebook/opt-350m": (
        331_196_416,
        {
            "model_type": "opt",
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "vocab_size": 50272,
            "word_embed_proj_dim": 512,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": False,
        },
    ),
    "bigscience/bloom-1b1": (
        1_065_314_304,
        {"model_type": "bloom", "hidden_size": 1536, "n_layer": 24, "n_head": 16, "vocab_size": 250880},
    ),
    "state-spaces/mamba-1.4b-hf": (
        1_372_178_432,
        {
            "model_type": "mamba",
            "hidden_size": 2048,
            "intermediate_size": 4096,
            "num_hidden_layers": 48,
            "state_size": 16,
            "time_step_rank": 128,
            "vocab_size": 50280,
        },
    ),
    "state-spaces/mamba-2.8b-hf": (
        2_768_345_600,
        {
            "model_type": "mamba",
            "hidden_size": 2560,
            "intermediate_size": 5120,
            "num_hidden_layers": 64,
            "state_size": 16,
            "time_step_rank": 160,
            "vocab_size": 50280,
        },
    ),
}
"""Model id: its number of weights as published, and its configuration. The one proves the other."""
