"""The families of docs/models.md, by key."""

from __future__ import annotations

from tests.helpers.dense_families import DENSE_FAMILIES
from tests.helpers.family import Family
from tests.helpers.mixtures import MIXTURES
from tests.helpers.recurrent_families import RECURRENT_FAMILIES
from tests.helpers.routed_families import ROUTED_FAMILIES

FAMILIES: dict[str, Family] = {
    "llama3" if family.name == "Llama 3" else family.model_type: family
    for family in (*DENSE_FAMILIES, *MIXTURES.values(), *ROUTED_FAMILIES, *RECURRENT_FAMILIES)
}
SAMPLE = (
    "llama3",
    "gemma2",
    "phi3",
    "gpt2",
    "bloom",
    "qwen2_moe",
    "deepseek_v3",
    "gpt_oss",
    "mamba",
    "qwen3_next",
    "falcon_h1",
    "lfm2",
)
"""One family per mechanism: scaled RoPE and tied tables, sliding windows and soft caps, fused projections, Conv1D layers,
ALiBi, shared experts, latent attention, attention sinks, a state-space model, linear attention, both at once, convolutions."""
