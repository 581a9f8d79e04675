"""Linear modules of a network: which of them can carry an adapter or be quantized."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Names of the linear modules that choose a mixture's experts."""

_READS = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape))")


def adaptable(network: Any) -> list[str]:
    """Full names of the modules that `all-linear` means: all that text passes through, but the head and routers.

    Experts that are held in one tensor are no modules. Nor are modules meant whose weight is read past them.
    """
    from transformers.pytorch_utils import Conv1D

    decoder, head = network.get_decoder(), network.get_output_embeddings()
    inside = {id(module) for module in decoder.modules()}
    past = set(read_directly(network))
    routers = ROUTERS if has_experts(network) else ()
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and id(module) in inside
        and module is not head
        and name not in past
        and name.rsplit(".", 1)[-1] not in routers
    ]


def read_directly(network: nn.Module) -> Iterator[str]:
    """Full names of a state-space mixer's projections whose weight its code reads itself, instead of calling them.

    The training kernels of Mamba and its kin take the weights of several projections. What stands in such a
    projection's place, an adapter or a quantized layer, is then passed by, or read as if it were plain. Which
    kernel runs depends on the machine, so the code is asked, not a run of it.
    """
    for name, module in network.named_modules():
        if hasattr(module, "A_log"):
            read = _READS.findall(inspect.getsource(type(module).forward))
            for child, part in module.named_children():
                if child in read and isinstance(part, nn.Linear):
                    yield f"{name}.{child}"


def has_experts(network: nn.Module) -> bool:
    return any(name.rsplit(".", 1)[-1] == "experts" for name, _ in network.named_modules())


def quantized_share(network: Any, plain: list[str]) -> tuple[float, str]:
    """Share of the weights that quantized linear modules would hold, and the largest weight that they would not.

    plain: names of linear modules that stay as they are. Embeddings and the head, which always do, are left out.
    """
    from transformers.pytorch_utils import Conv1D

    tables = {id(m) for m in network.modules() if isinstance(m, nn.Embedding)}
    tables.add(id(network.get_output_embeddings()))
    inside = others = 0
    largest: tuple[int, str] = (0, "")
    for name, module in network.named_modules():
        quantized = isinstance(module, nn.Linear | Conv1D) and name not in plain
        for weight, parameter in module.named_parameters(recurse=False):
            if id(module) in tables:
                continue
            if quantized and weight == "weight":
                inside += parameter.numel()
            else:
                others += parameter.numel()
                largest = max(largest, (parameter.numel(), f"{name}.{weight}"))
    return inside / (inside + others), largest[1]
