"""Where the weights of routed experts are: in stacks, which have one matrix per expert, or in modules of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

ROUTERS = ("gate", "router")
"""Names of the modules beside `experts` that choose the experts of a token."""


@dataclass(frozen=True)
class Stack:
    """The weights of all routed experts of a layer for one projection, in one tensor of three dimensions."""

    module: str
    """Full name of the module that has the tensor."""
    parameter: str
    """Name of the tensor in the module, such as `gate_up_proj`."""
    shape: tuple[int, int, int]
    """[experts, out, in], or [experts, in, out] in families that store transposed matrices."""

    transposed: bool
    """Whether the matrices are [in, out] and not [out, in]."""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.parameter}"

    @property
    def experts(self) -> int:
        return self.shape[0]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Experts, inputs and outputs of each."""
        experts, rows, columns = self.shape
        return (experts, rows, columns) if self.transposed else (experts, columns, rows)


def stacks(network: nn.Module) -> list[Stack]:
    """The stacks of a base without an adapter, in the order of its weights."""
    return [
        Stack(
            name,
            parameter,
            (weight.shape[0], weight.shape[1], weight.shape[2]),
            transposed=bool(getattr(module, "is_transposed", False)),  # PEFT reads the same attribute
        )
        for name, module in network.named_modules()
        if is_stacked(module)
        for parameter, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    ]


def is_stacked(module: nn.Module) -> bool:
    """Whether a module stores its experts in stacks. In transformers these classes are called `…Experts`."""
    return type(module).__name__.endswith("Experts") and any(
        weight.ndim == 3 for weight in module.parameters(recurse=False)
    )


def routers(network: nn.Module) -> list[str]:
    """Full names of the modules that route tokens to experts: beside the module `experts` of each layer."""
    found = []
    for name, module in network.named_modules():
        children = dict(module.named_children())
        if "experts" in children:
            found += [f"{name}.{child}" for child in ROUTERS if _has_weights(children.get(child))]
    return found


def _has_weights(module: Any) -> bool:
    return isinstance(module, nn.Module) and any(True for _ in module.parameters())
