"""The linear modules of a network: which can have a LoRA adapter and which can be quantized."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from tailor.models.decoder import decoder_of, head_of
from tailor.models.experts.loading import quantizable

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Names of the modules that route tokens to experts: linear ones, or ones that have a linear one."""

_READS = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape))")


def adaptable(network: Any) -> list[str]:
    """Full names of the modules that `all-linear` selects: the decoder's linear modules without the head and the routers.

    Not included: experts whose weights are one stacked tensor (they are not modules), modules whose weight the model reads
    directly (`read_directly`), and modules that share theirs (`sharing`).
    """
    from transformers.pytorch_utils import Conv1D

    decoder, head = decoder_of(network), head_of(network)
    inside = {id(module) for module in decoder.modules()}
    bypassed = {*read_directly(network), *sharing(network)}
    routers = set(ROUTERS) if has_experts(network) else set()
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and id(module) in inside
        and module is not head
        and name not in bypassed
        and routers.isdisjoint(name.split("."))  # HunYuan: `gate.wg`; JetMoe: `router.layer`
    ]


def read_directly(network: nn.Module) -> Iterator[str]:
    """Full names of the projections whose weight the code reads directly: of state-space mixers (Mamba and others) and of
    Gemma 3n's AltUp, which clamps its coefficients in place.

    The fused training kernels of the mixers take the weights of several projections instead of calling the modules. They would ignore an
    adapter on such a projection, and would read a quantized weight as if it were a plain one. Which kernel runs depends on
    the machine, so this searches the source code for `self.NAME.weight` and does not run it.
    """
    for name, module in network.named_modules():
        kind = type(module)
        code = kind.forward if hasattr(module, "A_log") else kind if kind.__name__.endswith("AltUp") else None
        if code is not None:
            read = _READS.findall(inspect.getsource(code))
            for child, part in module.named_children():
                if child in read and isinstance(part, nn.Linear):
                    yield f"{name}.{child}"


def sharing(network: Any) -> list[str]:
    """Full names of the decoder's modules that share their weight with another one (in the attention of Zamba and Zamba 2).

    Each would have an adapter of its own, and one weight cannot have the updates of several.
    """
    inside, owners = {id(module) for module in decoder_of(network).modules()}, dict[int, list[str]]()
    for name, module in network.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and id(module) in inside:
            owners.setdefault(id(weight), []).append(name)
    return [name for names in owners.values() if len(names) > 1 for name in names]


def has_experts(network: nn.Module) -> bool:
    """Whether a network is a mixture of experts."""
    return any(name.rsplit(".", 1)[-1] == "experts" for name, _ in network.named_modules())


def quantized_share(network: Any, plain: list[str]) -> tuple[float, str]:
    """The share of the parameters that quantization would cover, and the name of the largest parameter that it would not.

    plain: names of linear modules that are not to be quantized. Embeddings and the head are not counted: they never are.
    """
    from transformers.pytorch_utils import Conv1D

    tables = {id(m) for m in network.modules() if isinstance(m, nn.Embedding)}
    tables.add(id(head_of(network)))
    stacked = {stack.name for stack in quantizable(network)}
    inside = others = 0
    largest: tuple[int, str] = (0, "")
    for name, module in network.named_modules():
        quantized = isinstance(module, nn.Linear | Conv1D) and name not in plain
        for weight, parameter in module.named_parameters(recurse=False):
            if id(module) in tables:
                continue
            if (quantized and weight == "weight") or f"{name}.{weight}" in stacked:
                inside += parameter.numel()
            else:
                others += parameter.numel()
                largest = max(largest, (parameter.numel(), f"{name}.{weight}"))
    return inside / (inside + others), largest[1]
