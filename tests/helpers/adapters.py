"""Adapters as training leaves them, with random weights, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tailor.models import files
from tailor.models.base_record import BaseRecord
from tailor.spec.model import Quantize
from tests.helpers.models import byte_tokenizer


def random_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    size: float = 0.05,
    quantize: Quantize | None = None,
    dtype: str = "float32",
    known_base: bool = True,
    **config: Any,
) -> Path:
    """A LoRA adapter on `base` whose updates have entries of about `size`, with `base.json` beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    adapted = get_peft_model(network, LoraConfig(**{**settings, **config}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    byte_tokenizer(folder)
    weights = files.fingerprint(base) if known_base else None
    BaseRecord(str(base), None, dtype, quantize, weights).write(folder)
    return folder
