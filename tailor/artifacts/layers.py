"""One layer of a merge, looked at alone: for models that do not fit into memory as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tailor.artifacts.tensors import Reader
from tailor.models.load import DTYPES

if TYPE_CHECKING:
    from tailor.artifacts.lora import LoraAdapter
    from tailor.artifacts.merge import Source

INPUTS = 64


@torch.no_grad()
def output_error(
    folder: Path,
    source: Source,
    adapter: LoraAdapter,
    module: str,
    names: dict[str, str],
    device: torch.device,
) -> float:
    """‖merged − trained‖ / ‖trained‖ of a linear layer's output for random inputs, the trained one by PEFT.

    `folder`: the merged model; `names`: the stored name of each weight that has an update.
    """
    name = f"{module}.weight"
    with Reader.of_model(source.base) as reader:
        weight = reader.read(names[name])
    with Reader.of_model(folder) as reader:
        merged = reader.read(name if name in reader else names[name]).float()
    if name in adapter.replaced:
        weight = adapter.reader.read(adapter.replaced[name])
    product = adapter.product(module)
    if product.shape != weight.shape:  # [in, out], or an embedding
        weight, merged = weight.T.contiguous(), merged.T
    layer = trained_layer(source, adapter, module, weight, device)
    inputs = torch.randn(INPUTS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    expected = layer(inputs.to(device)).float().cpu()
    found = inputs @ merged.T
    return float((found - expected).norm() / expected.norm())


def trained_layer(
    source: Source, adapter: LoraAdapter, module: str, weight: torch.Tensor, device: torch.device
) -> Any:
    """PEFT's layer with the base's weight [out, in], held as in training, and the adapter's update of `module`."""
    from peft import LoraConfig, inject_adapter_in_model

    from tailor.artifacts.verify import in_float32

    update = adapter.updates[module]
    alone = nn.Module()
    alone.layer = _linear(source, weight.to(DTYPES[source.held.dtype]), device)
    config = LoraConfig(
        r=adapter.rank(module),
        lora_alpha=update.scale * adapter.rank(module),  # type: ignore[arg-type]
        target_modules=["layer"],
        use_dora=update.magnitude is not None,
    )
    inject_adapter_in_model(config, alone)
    in_float32(alone)
    layer: Any = alone.layer
    layer.lora_A["default"].weight.copy_(adapter.reader.read(update.down))
    layer.lora_B["default"].weight.copy_(adapter.reader.read(update.up))
    if update.magnitude is not None:
        layer.lora_magnitude_vector["default"].weight.copy_(adapter.reader.read(update.magnitude).flatten())
    return layer


def _linear(source: Source, weight: torch.Tensor, device: torch.device) -> nn.Module:
    """A frozen linear layer without bias, in 4 or 8 bits where training held it so."""
    quantize = source.held.quantize
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
        layer.support_avx512bf16_for_cpu = False  # it would round the constants
    return layer.to(device)
