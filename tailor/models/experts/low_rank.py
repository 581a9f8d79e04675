"""LoRA on stacks of experts, computed beside the frozen weights: y = W·x + s·B·(A·x) for the expert of each token.

PEFT adds s·B·A to the weights of all experts in each forward pass, and takes the gradient of the sums. Here the products
with the factors are grouped like those with the weights (`grouped_mm`), so that no tensor of the size of a stack is made, an
expert without tokens costs nothing, and an update that is smaller than the rounding of a bf16 weight counts. Weights and
files are PEFT's.

In the shapes, N is the number of (token, expert) pairs, E of experts, R the rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

from tailor.models.experts import packed

MULTIPLE = 8
"""grouped_mm needs rows of a multiple of 16 bytes, which are 8 numbers in bf16. Smaller ranks are filled up with zeros."""


class Factors(NamedTuple):
    """The update of each expert's matrix [in, out] as a product. down: [E, in, R]. up: [E, R, out], with the scale."""

    down: torch.Tensor
    up: torch.Tensor


def install(network: nn.Module) -> None:
    """Make the adapted and the quantized experts of a network compute as described above, where their class allows it.

    The classes of transformers that have `use_experts_implementation` do. Others keep PEFT's own computation.
    """
    for name, module in list(network.named_modules()):
        if name.endswith(".base_layer"):
            continue
        experts = _innermost(module)
        if is_grouped(experts) and (experts is not module or packed.is_packed(module)):
            module.forward = MethodType(_forward, module)


def is_grouped(experts: Any) -> bool:
    """Whether a module computes its experts as the functions of transformers' `ExpertsInterface` do."""
    return all(hasattr(experts, name) for name in ("has_gate", "is_transposed", "_apply_gate"))


def wrappers(module: Any) -> Iterator[Any]:
    """PEFT's wrappers around a module with stacks, one per adapted stack, from the outermost on."""
    from peft.tuners.lora.layer import ParamWrapper

    while isinstance(module, ParamWrapper):
        yield module
        module = module.base_layer


def _innermost(module: Any) -> Any:
    *_, last = (module, *(wrapper.base_layer for wrapper in wrappers(module)))
    return last


def _forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """As transformers' `grouped_mm_experts_forward`. hidden_states: [tokens, H]; top_k_index, top_k_weights: [tokens, K]."""
    experts = _innermost(module)
    factors = {wrapper.parameter_name: _factors(wrapper) for wrapper in wrappers(module) if _is_on(wrapper)}
    top_k = top_k_index.shape[-1]
    of_expert, order = torch.sort(top_k_index.reshape(-1))  # int64[N] each
    every = torch.arange(experts.num_experts, device=of_expert.device)
    offsets = torch.searchsorted(of_expert, every, right=True).to(
        torch.int32
    )  # [E], where each expert's pairs end

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        """[N, in] -> [N, out]."""
        y = packed.product(experts, name, x, offsets, transposed=experts.is_transposed)
        if experts.has_bias:
            y = y + getattr(experts, f"{name}_bias")[of_expert]
        return y if name not in factors else y + _update(factors[name], x, offsets).to(y.dtype)

    x = hidden_states[order // top_k]  # [N, H]
    if experts.has_gate:
        x = experts._apply_gate(project("gate_up_proj", x))  # [N, I]
    else:
        x = experts.act_fn(project("up_proj", x))
    x = project("down_proj", x)  # [N, H]
    if experts.has_post_expert_norm:
        x = experts.post_expert_norm(x)
    x = x * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return x[back].view(*top_k_index.shape, -1).sum(dim=1).to(hidden_states.dtype)  # [tokens, H]


def _is_on(wrapper: Any) -> bool:
    return not wrapper.disable_adapters and not wrapper.merged and bool(wrapper.active_adapters)


def _factors(wrapper: Any) -> Factors:
    """Of all active adapters together."""
    downs, ups = [], []
    for adapter in wrapper.active_adapters:
        if adapter in wrapper.lora_A:
            a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight  # [E · R, in], [out, R · E]
            downs.append(a.view(wrapper.num_experts, -1, a.shape[1]).transpose(1, 2))
            ups.append(b.view(len(b), -1, wrapper.num_experts).permute(2, 1, 0) * wrapper.scaling[adapter])
    return Factors(*(downs + ups)) if len(downs) == 1 else Factors(torch.cat(downs, 2), torch.cat(ups, 1))


def _update(factors: Factors, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """[N, in] -> [N, out]."""
    down, up = factors
    if torch.is_autocast_enabled(x.device.type):  # as in PEFT's linear layers
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != down.dtype:
        x = x.to(down.dtype)
    if extra := -down.shape[2] % MULTIPLE:
        down = nn.functional.pad(down, (0, extra))
        up = nn.functional.pad(up, (0, 0, 0, extra))
    # Both with rows of the longer dimension.
    down = down.to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    inner = packed.grouped(x, down, offsets)  # [N, R]
    return packed.grouped(inner, up.to(x.dtype).contiguous(), offsets)
