"""The types of a GGUF file that `--type` names, with the largest allowed difference of each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from tailor.errors import ModelError


@dataclass(frozen=True)
class GgufType:
    """A type of llama.cpp's quantizer.

    limit: the largest allowed mean KL divergence of the file's next-token distribution from the model's in float32, in nats
    per token. The limits of quantized types are five times what SmolLM2-135M loses, and at most 1: q8_0 0.006, q6_k 0.028, q5_k_m
    0.093, q5_k_s 0.12, q4_k_m 0.086, q4_k_s 0.11, q4_0 0.47, q3_k_m 0.17 (tests/export/test_gguf_real.py). Larger models lose
    less.
    """

    name: str
    ftype: int
    """The value of `llama_ftype` in llama.h."""
    limit: float


TYPES = {
    one.name: one
    for one in (
        GgufType("f32", 0, 1e-6),
        GgufType("f16", 1, 1e-3),
        GgufType("bf16", 32, 5e-3),
        GgufType("q8_0", 7, 0.03),
        GgufType("q6_k", 18, 0.15),
        GgufType("q5_k_m", 17, 0.5),
        GgufType("q5_k_s", 16, 0.6),
        GgufType("q4_k_m", 15, 0.5),
        GgufType("q4_k_s", 14, 0.5),
        GgufType("q4_0", 2, 1.0),
        GgufType("q3_k_m", 12, 0.9),
    )
}
DEFAULT = "f16"
UNROUNDED = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Data type of a model's weights -> the type that stores them without rounding."""


def find_type(name: str) -> GgufType:
    """The type `name`. ModelError for an unknown one."""
    if name.lower() not in TYPES:
        near = difflib.get_close_matches(name.lower(), TYPES, n=1)
        raise ModelError(
            f"--type {name}: unknown GGUF type" + (f"; did you mean {near[0]}?" if near else ""),
            hint=f"use {', '.join(TYPES)}",
        )
    return TYPES[name.lower()]
