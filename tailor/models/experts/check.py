"""Checks that every routed expert that should have an adapter has one, and that it trains."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models.experts.low_rank import wrappers
from tailor.models.experts.stacks import Stack

TOKENS = 4
"""Tokens per expert in the check of the gradients."""
_HINT = "set model.adapter.experts: shared"


def require_attached(base: nn.Module, stacks: Sequence[Stack]) -> None:
    """ModelError unless each stack has an adapter with a part for each of its experts.

    PEFT attaches none to a tensor with a parametrization, such as a quantized one of bitsandbytes, and says nothing.
    """
    found = {
        (name, wrapper.parameter_name): wrapper.num_experts
        for name, module in base.named_modules()
        if not name.endswith(".base_layer")
        for wrapper in wrappers(module)
    }
    missing = [stack for stack in stacks if found.get((stack.module, stack.parameter)) != stack.experts]
    if missing:
        experts, total = sum(s.experts for s in missing), sum(s.experts for s in stacks)
        raise ModelError(
            f"model.adapter.experts: PEFT attached no adapter to {experts} of the {total} matrices of routed experts of "
            f"{type(base).__name__}; {missing[0].name}, for example, has none",
            hint=_HINT,
        )


def require_gradients(base: nn.Module) -> None:
    """ModelError unless the adapter of every expert in a stack gets a gradient from tokens that are routed to it.

    At the start B is zero, so that only B has a gradient.
    """
    for name, module in base.named_modules():
        layers = [] if name.endswith(".base_layer") else list(wrappers(module))
        if not layers:
            continue
        with torch.enable_grad():
            factors = [layer.lora_B[layer.active_adapters[0]].weight for layer in layers]
            gradients = torch.autograd.grad(
                _output(module, layers[0].num_experts), factors, allow_unused=True
            )
        for layer, gradient in zip(layers, gradients, strict=True):
            # [out, R · E] -> bool[E]
            trains = gradient is not None and gradient.view(len(gradient), -1, layer.num_experts).any(0).any(
                0
            )
            if gradient is None or not bool(trains.all()):
                without = layer.num_experts if gradient is None else int((~trains).sum())
                raise ModelError(
                    f"model.adapter.experts: {without} of the {layer.num_experts} experts of {name}.{layer.parameter_name} get "
                    "no gradient for their adapter, so they would not train",
                    hint=_HINT,
                )


def _output(module: Any, experts: int) -> torch.Tensor:
    """A scalar of the output for random hidden states, TOKENS of which go to each expert."""
    base = list(wrappers(module))[-1].base_layer
    weight = next(weight for weight in base.parameters() if weight.ndim == 3)
    width = _hidden_size(base)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(experts * TOKENS, width, generator=generator).to(weight.device, weight.dtype)
    if (
        len(inspect.signature(type(base).forward).parameters) == 2
    ):  # Llama 4: each expert has its part of the rows
        return (module(x) * x).float().sum()
    chosen = torch.arange(experts, device=x.device).repeat_interleave(TOKENS)[:, None]  # int64[tokens, 1]
    output: torch.Tensor = module(x, chosen, torch.ones_like(chosen, dtype=x.dtype))
    return (output * x).float().sum()


def _hidden_size(base: Any) -> int:
    for name in ("hidden_dim", "hidden_size"):
        if isinstance(size := getattr(base, name, None), int):
            return size
    raise ModelError(
        f"model.adapter.experts: {type(base).__name__} computes its experts in a way that cannot be checked",
        hint=_HINT,
    )
