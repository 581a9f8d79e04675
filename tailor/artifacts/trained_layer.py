"""One layer with its adapter as PEFT computes it, for the verification of merges and averages by layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tailor.artifacts.base_model import as_quantized
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.verify import in_float32
from tailor.models import quantization
from tailor.models.base_record import BaseRecord
from tailor.models.load import DTYPES
from tailor.spec.model import Quantize


def trained_layer(
    base_record: BaseRecord, adapter: LoraAdapter, module: str, weight: torch.Tensor, device: torch.device
) -> Any:
    """A PEFT layer with the base's weight [out, in], in the dtype or quantization of training, and the adapter's update.

    For a stack of experts, weight is [E, out, in] or [E, in, out], and the layer maps [N, in] to [E, N, out].
    """
    from peft import LoraConfig, inject_adapter_in_model

    update = adapter.updates[module]
    weight = weight.to(DTYPES[base_record.dtype])
    alone = nn.Module()
    if update.experts is None:
        alone.layer = _linear(base_record.quantize, weight, device)
        targets: dict[str, list[str]] = {"target_modules": ["layer"]}
    else:
        alone.layer = _Stack(base_record.quantize, weight, update.transposed, device)
        targets = {"target_modules": [], "target_parameters": ["layer.stack"]}
    config = LoraConfig(
        r=adapter.rank(module),
        lora_alpha=update.scale * adapter.rank(module),  # type: ignore[arg-type]
        use_dora=update.magnitude is not None,
        **targets,  # type: ignore[arg-type]
    )
    inject_adapter_in_model(config, alone)
    in_float32(alone, DTYPES[base_record.dtype])
    layer: Any = alone.layer
    layer.lora_A["default"].weight.copy_(adapter.reader.read(update.down))
    layer.lora_B["default"].weight.copy_(adapter.reader.read(update.up))
    if update.magnitude is not None:
        layer.lora_magnitude_vector["default"].weight.copy_(adapter.reader.read(update.magnitude).flatten())
    return layer


def _linear(quantize: Quantize | None, weight: torch.Tensor, device: torch.device) -> nn.Module:
    """A frozen linear layer without bias, quantized as in training. weight: [out, in]."""
    if quantize is None:
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        plain.weight.copy_(weight)
        return plain.to(device)
    import bitsandbytes as bnb

    layer: Any
    if quantize.type == "int8":
        layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            compress_statistics=quantize.double,
            quant_type=quantize.type,
        )
        layer.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=quantize.double, quant_type=quantize.type
        )
    return quantization.with_one_mode(layer.to(device))


class _Stack(nn.Module):
    """The frozen matrices of E experts, quantized and dequantized as in training."""

    def __init__(
        self, quantize: Quantize | None, weight: torch.Tensor, transposed: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.is_transposed = transposed  # PEFT reads it
        value = weight if quantize is None else as_quantized(weight, quantize, device)
        self.stack = nn.Parameter(value.to(device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in] -> [E, N, out]."""
        return x @ (self.stack if self.is_transposed else self.stack.transpose(1, 2))
