"""Tiny base models whose weights are stored quantized, written with own arithmetic where bitsandbytes is not the subject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.helpers.models import byte_tokenizer, tiny_llama

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of E2M1, in the order of their codes."""


def stored_by_bitsandbytes(base: Path, folder: Path, kind: str) -> Path:
    """`base` with its linear weights stored as nf4, fp4 or int8, as in the repositories of quantized models."""
    from tailor.models.load import load_network
    from tailor.spec.model import Model, Quantize

    spec = Model(path=str(base), quantize=Quantize(type=kind))  # type: ignore[arg-type]
    load_network(spec, dtype=torch.float32, device=torch.device("cpu")).save_pretrained(folder)
    return byte_tokenizer(folder)


def fp8_llama(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A Llama in fp8 (e4m3) with one scale per block of 64 x 64 weights, and its weights in float32."""
    weights = _weights(tiny_llama(folder, hidden_size=128))
    stored: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if "_proj" not in name:
            stored[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.reshape(rows // 64, 64, columns // 64, 64)
        scale = blocks.abs().amax((1, 3)) / 448  # [rows / 64, columns / 64]; 448: the largest number of e4m3
        rounded = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stored[name] = rounded.reshape(rows, columns)
        stored[f"{name}_scale_inv"] = scale
        weights[name] = (rounded.float() * scale[:, None, :, None]).reshape(rows, columns)
    _store(
        folder,
        stored,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]},
    )
    return folder, weights


def mxfp4_gpt_oss(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A gpt-oss whose experts are in MXFP4 (blocks of 32 weights with a power of two each), and its weights in float32."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=261,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        initializer_range=0.15,
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(folder)
    byte_tokenizer(folder)
    weights, stored = _weights(folder), {}
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), generator=generator)
        exponents = torch.randint(-5, -2, (experts, outputs, inputs // 32, 1), generator=generator)
        pairs = codes.reshape(experts, outputs, inputs // 32, 16, 2)
        stored[f"{name}_blocks"] = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
        stored[f"{name}_scales"] = (exponents[..., 0] + 127).to(torch.uint8)
        values = torch.tensor(FP4)[codes] * 2.0**exponents
        weights[name] = values.reshape(experts, outputs, inputs).transpose(1, 2)
    _store(folder, stored, {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "lm_head"]})
    return folder, weights


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def _store(folder: Path, stored: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: part.contiguous() for name, part in stored.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
