"""Quantized base weights (bitsandbytes): their settings, and layers that compute in inference as in training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tailor.errors import ModelError
from tailor.models import linear
from tailor.models.experts import low_rank
from tailor.plan import quantized
from tailor.spec.model import Model, Quantize


def when_loading(
    config: Any, spec: Model, compute: torch.dtype, bare: Callable[[], Any], *, gguf: bool
) -> Any:
    """transformers' quantization settings to load `spec` with; None to load the weights as they are stored.

    bare: makes the network on the meta device. gguf: the weights are in a `.gguf` file.
    """
    import transformers

    if gguf:  # versions without this class always dequantize
        dequantized = getattr(transformers, "GgufConfig", None)
        return dequantized and dequantized(dequantize=True)
    if spec.quantize is not None:
        return settings_of(bare(), spec.quantize, compute)
    if spec.dequantize:
        kinds = {"fp8": transformers.FineGrainedFP8Config, "mxfp4": transformers.Mxfp4Config}
        kind = kinds.get(str(quantized.method(config.to_dict())))
        return kind and kind(dequantize=True)
    return None


def as_in_training(network: Any, spec: Model, compute: torch.dtype, stored: str | None) -> Any:
    """A loaded network whose quantized layers compute as in training; dequantized if `spec` says so.

    stored: the format in which its weights are stored quantized.
    """
    if stored == quantized.KEPT or spec.dequantize:
        _convert(network, compute)
    if spec.dequantize:
        if stored == quantized.KEPT:
            network = network.dequantize(dtype=compute)
        # Else transformers would quantize the weights again when it saves them, or fail.
        network._weight_conversions = None
    if spec.quantize is not None:
        low_rank.install(network)
    return with_one_mode(network)


def _convert(network: Any, compute: torch.dtype) -> None:
    """Give a network whose weights are stored quantized the dtype `compute`, as if its plain weights had been quantized:
    transformers keeps the dtypes of the other weights as they are stored."""
    from bitsandbytes.nn import Linear4bit

    in_float32 = [*(network._keep_in_fp32_modules or ()), *(network._keep_in_fp32_modules_strict or ())]
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not any(part in name.split(".") for part in in_float32):
            parameter.data = parameter.data.to(compute)
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = module.weight.quant_state.dtype = compute


def forget(config: Any) -> None:
    """Remove the quantization of the stored weights from a transformers config: the weights in memory are plain."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config


def settings_of(bare: Any, spec: Quantize, compute: torch.dtype) -> Any:
    """bitsandbytes' settings for a model, from its modules alone, before any weight is read. ModelError: see `plain_linear`."""
    from transformers.quantizers.base import get_keys_to_not_convert

    plain = plain_linear(bare)
    # `llm_int8_skip_modules` replaces transformers' own list (the head and others), so that list is added to it.
    return settings(spec, compute, plain and [*plain, *get_keys_to_not_convert(bare)])


def plain_linear(bare: Any) -> list[str]:
    """Names of the linear modules that are not to be quantized. ModelError if less than half of the weights would be."""
    plain = list(linear.read_directly(bare))
    share, largest = linear.quantized_share(bare, plain)
    if share < 0.5:
        raise ModelError(
            f"model.quantize: bitsandbytes quantizes linear modules, which have only {share:.0%} of the weights of "
            f"{type(bare).__name__}; {largest}, for example, would not be quantized",
            hint="remove model.quantize",
        )
    return plain


def settings(spec: Quantize, compute: torch.dtype, plain: list[str] | None = None) -> Any:
    """A recipe's `model.quantize` as transformers' BitsAndBytesConfig. plain: names of modules that are not to be quantized;
    None for transformers' default."""
    from transformers import BitsAndBytesConfig

    skipped = plain or None
    if spec.type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.type,
        bnb_4bit_use_double_quant=spec.double,
        bnb_4bit_compute_dtype=compute,
    )


def with_one_mode(network: Any) -> Any:
    """Make bitsandbytes' layers compute in inference as in training. On CPUs they would not:

    * 8-bit layers dequantize their weights in training mode, and otherwise round the activations to 8 bits too
      (LLM.int8()), which changed the logits of a tiny model by 3 %. On GPUs both modes are LLM.int8().
    * 4-bit layers, with AVX512-BF16: the first call without a gradient would reorder the weights of a layer and round their
      constants to bf16. From then on, the layer would pass no gradient to the layers below it.
    """
    from bitsandbytes.nn import Linear8bitLt

    for module in network.modules():
        if isinstance(module, Linear8bitLt):
            module.forward = partial(_eight_bit_forward, module)
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return network


def dequantized(layer: Any) -> torch.Tensor:
    """The weight [out, in] of a quantized linear layer: 8-bit ones in float32, 4-bit ones in the dtype that they were
    quantized from."""
    import bitsandbytes as bnb

    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    scales = layer.state.SCB if weight.SCB is None else weight.SCB  # moved into the state by the first call
    return bnb.functional.int8_vectorwise_dequant(weight.data, scales)


def _eight_bit_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.weight.SCB is None:
        # On CPUs, PEFT's DoRA replaces the weight by one that looks new; its scales stay in the state.
        layer.weight.CB = None
    training, layer.training = layer.training, True
    try:
        output: torch.Tensor = type(layer).forward(layer, x)
        return output
    finally:
        layer.training = training
