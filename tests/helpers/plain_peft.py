"""Logits by plain transformers and plain PEFT: what merges and averages must have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

IDS = torch.tensor([[9, 41, 77, 130, 12, 200, 33, 8]])


def plain_model(folder: Path | str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits_of_model(folder: Path | str) -> torch.Tensor:
    return plain_model(folder)(IDS).logits  # type: ignore[no-any-return]


@torch.no_grad()
def logits_of_adapter(adapter: Path | str, base: Path | str) -> torch.Tensor:
    """The base in float32 with the adapter."""
    from peft import PeftModel

    return PeftModel.from_pretrained(plain_model(base), str(adapter)).eval()(IDS).logits  # type: ignore[no-any-return]


@torch.no_grad()
def logits_of_nf4(adapter: Path | str, base: Path | str) -> torch.Tensor:
    """The adapter on the base that transformers quantized and dequantized, as with 4-bit weights and a bf16 compute dtype."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=config)
    network = network.dequantize().float()
    return PeftModel.from_pretrained(network, str(adapter)).eval()(IDS).logits  # type: ignore[no-any-return]


@torch.no_grad()
def averaged_logits(
    adapters: Sequence[Path | str], base: Path | str, weights: Sequence[float]
) -> torch.Tensor:
    """The mean of the models into which PEFT merges the adapters. It is the base with the mean of their updates."""
    from peft import PeftModel

    total: dict[str, torch.Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        merged = PeftModel.from_pretrained(plain_model(base), str(adapter)).merge_and_unload()
        for name, tensor in merged.state_dict().items():
            total[name] = total.get(name, 0) + tensor.double() * (weight / sum(weights))
    mean = plain_model(base)
    mean.load_state_dict({name: tensor.float() for name, tensor in total.items()})
    return mean(IDS).logits  # type: ignore[no-any-return]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    return float((one - other).norm() / other.norm())
