"""`model.adapter.init`: the initial values of a LoRA adapter.

PiSSA and OLoRA start from a part s·B₀·A₀ of a weight W, and train W - s·B₀·A₀ + s·B·A. PEFT stores the difference
W - s·B₀·A₀ in place of W. Here W stays as it is, and -s·B₀·A₀ is a second, frozen LoRA adapter `initial` beside the trained
one. The gradients are the same. The difference is not rounded to the base's dtype, the base without adapter is still the
base, and both adapters together are a LoRA adapter of twice the rank, which is what is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.spec.adapter import REPLACING, Adapter

TRAINED, INITIAL = "default", "initial"
"""Names of the adapters in PEFT. `default` is also PEFT's own name for the only adapter."""
BY_PEFT: dict[str, bool | str] = {"default": True, "gaussian": "gaussian"}
"""Inits that PEFT computes while it adds the adapter -> its `init_lora_weights`."""


def initialize(adapted: Any, spec: Adapter, unquantized: nn.Module | None) -> None:
    """Set the initial values, unless PEFT has done so (BY_PEFT). adapted: a PeftModel.

    unquantized: the base without quantization, for `loftq`. ModelError for modules that the init does not support.
    """
    if spec.init in BY_PEFT:
        return
    layers = list(_layers(adapted))
    for name, layer in layers:
        _check(name, layer, spec.init)
        _factorize(layer, spec.init, unquantized and _oriented(unquantized.get_submodule(name)))
    if spec.init not in REPLACING:
        return
    config = adapted.peft_config[TRAINED]
    adapted.add_adapter(INITIAL, type(config)(**_shared(config), lora_dropout=0.0, init_lora_weights=False))
    for _, layer in layers:
        layer.lora_A[INITIAL].weight.data = layer.lora_A[TRAINED].weight.detach().float().clone()
        layer.lora_B[INITIAL].weight.data = -layer.lora_B[TRAINED].weight.detach().float()
        layer.set_adapter([TRAINED, INITIAL])
    for _, factor in initial_factors(adapted):
        factor.requires_grad_(False)


def initial_factors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, value) of the frozen factors A₀ [r, in] and -B₀ [out, r]. A checkpoint has them: another machine may compute
    others."""
    return ((name, p) for name, p in model.named_parameters() if f".{INITIAL}." in name and ".lora_" in name)


def as_lora(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by name, with the trained and the initial factors joined to those of one LoRA adapter: [A; A₀], [B, -B₀]."""
    joined = dict(weights)
    for name in weights:
        if f".{INITIAL}." in name and ".lora_" in name:
            trained = name.replace(f".{INITIAL}.", f".{TRAINED}.")
            parts = [weights[trained], joined.pop(name)]
            joined[trained] = torch.cat(parts, dim=0 if ".lora_A." in name else 1)
    return joined


def as_lora_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings that change in `as_lora`: twice the rank, and the same scale s."""
    factor = math.sqrt(2) if config["use_rslora"] else 2.0  # s = alpha/√r with rsLoRA, else alpha/r
    return {
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {key: 2 * rank for key, rank in (config["rank_pattern"] or {}).items()},
        "alpha_pattern": {key: factor * alpha for key, alpha in (config["alpha_pattern"] or {}).items()},
    }


def _layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """(name in the base, module) of every module with a LoRA adapter."""
    from peft.tuners.lora import LoraLayer

    named = adapted.get_base_model().named_modules()
    return ((name, module) for name, module in named if isinstance(module, LoraLayer))


def _shared(config: Any) -> dict[str, Any]:
    """The settings that the initial adapter has in common with the trained one."""
    shared = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "task_type")
    return {key: getattr(config, key) for key in shared}


def _check(name: str, layer: Any, init: str) -> None:
    """ModelError for modules without this init in PEFT."""
    from transformers.pytorch_utils import Conv1D

    base, rank = layer.get_base_layer(), layer.r[TRAINED]
    start = f"model.adapter.init: {init} does not support {name}: "
    # PEFT's OLoRA takes the weight of a Conv1D, [in, out], for [out, in].
    if (
        not hasattr(base, "weight")
        or isinstance(base, nn.Embedding)
        or (init == "olora" and isinstance(base, Conv1D))
    ):
        raise ModelError(
            f"{start}it is of the type {type(base).__name__}",
            hint="set model.adapter.init: default, or name other modules in model.adapter.target_modules",
        )
    smallest = min(layer.in_features, layer.out_features)
    if init != "orthogonal" and rank > smallest:
        raise ModelError(
            f"{start}its weight is {layer.out_features} × {layer.in_features}, which has fewer than {rank} singular values",
            hint=f"set model.adapter.rank, or rank_pattern for this module, to at most {smallest}",
        )
    if init == "orthogonal" and rank % 2:
        raise ModelError(
            f"{start}its rank {rank} is odd", hint="set even numbers in model.adapter.rank and rank_pattern"
        )


def _oriented(module: Any) -> torch.Tensor:
    """The weight as [out, in]: bitsandbytes replaces a Conv1D, [in, out], by a linear layer."""
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def _factorize(layer: Any, init: str, unquantized: torch.Tensor | None) -> None:
    """Compute A and B with PEFT, which also subtracts s·B·A from the weight: it gets a copy."""
    from peft.utils.integrations import dequantize_module_weight

    base = layer.get_base_layer()
    weight = base._parameters["weight"]
    matrix = weight.detach().float().clone() if unquantized is None else unquantized.detach().float()
    if unquantized is not None:
        # LoftQ with the base as it is quantized already: s·B·A is the best approximation of the quantization error.
        matrix = matrix.to(weight.device) - dequantize_module_weight(base).float()
    base._parameters["weight"] = nn.Parameter(matrix, requires_grad=False)
    try:
        if init == "olora":
            layer.olora_init(TRAINED)
        elif init == "orthogonal":
            layer.orthogonal_init(TRAINED)
        else:
            layer.pissa_init(TRAINED, "pissa")
    finally:
        base._parameters["weight"] = weight
