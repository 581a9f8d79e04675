"""Products with the frozen stacks of experts, which may be quantized (bitsandbytes): nf4, fp4 or int8.

bitsandbytes has no layer for a stack. Its `replace_parameter_4bit` makes a parametrization, to which PEFT attaches no adapter,
without an error. So a quantized stack is an attribute of its module, and the parameter is replaced by an expanded NaN of the
same shape. PEFT finds the parameter as in a base that is not quantized, with the same names in its files, and code that reads
it computes NaN. The products dequantize a stack when they need it, once for the forward and once for the backward pass, so
that only one at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tailor.spec.model import Quantize

ATTRIBUTE = "tailor_packed"


@dataclass
class Packed:
    """A quantized stack."""

    data: torch.Tensor
    """4 bits: uint8[numbers / 2, 1]. 8 bits: int8[rows, columns], each row with a scale."""
    state: Any
    """4 bits: bitsandbytes' QuantState. 8 bits: float32[rows], the largest absolute value of each row."""
    shape: torch.Size
    dtype: torch.dtype
    """That the stack was quantized from."""
    compute: torch.dtype
    """That of the products."""

    @classmethod
    def of(cls, stack: torch.Tensor, spec: Quantize) -> Packed:
        import bitsandbytes.functional as bnb

        if spec.type == "int8":
            data, state, _ = bnb.int8_vectorwise_quant(_rows(stack).to(torch.float16))
        else:
            data, state = bnb.quantize_4bit(
                stack.contiguous(), compress_statistics=spec.double, quant_type=spec.type
            )
        return cls(data, state, stack.shape, stack.dtype, stack.dtype)

    def dequantized(self) -> torch.Tensor:
        """The stack in the dtype that it was quantized from."""
        import bitsandbytes.functional as bnb

        if self.data.dtype == torch.int8:
            return bnb.int8_vectorwise_dequant(self.data, self.state).to(self.dtype).view(self.shape)
        return bnb.dequantize_4bit(self.data, self.state).view(self.shape)


def _rows(stack: torch.Tensor) -> torch.Tensor:
    return stack.reshape(-1, stack.shape[-1])


def pack(experts: Any, name: str, stack: torch.Tensor, spec: Quantize) -> nn.Parameter:
    """Quantize a stack and store it in its module. Returns the parameter that replaces the stack."""
    if not hasattr(experts, ATTRIBUTE):
        setattr(experts, ATTRIBUTE, {})
    getattr(experts, ATTRIBUTE)[name] = Packed.of(stack, spec)
    missing = torch.full((1, 1, 1), torch.nan, dtype=stack.dtype, device=stack.device)
    return nn.Parameter(missing.expand(stack.shape), requires_grad=False)


def packed_stacks(network: nn.Module) -> Iterator[Packed]:
    """The quantized stacks of a network."""
    for module in network.modules():
        yield from getattr(module, ATTRIBUTE, {}).values()


def is_placeholder(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what `pack` puts in place of a stack."""
    return tensor.ndim == 3 and tensor.stride() == (0, 0, 0)


def is_packed(experts: Any) -> bool:
    """Whether a module has quantized stacks."""
    return bool(getattr(experts, ATTRIBUTE, None))


def product(
    experts: Any, name: str, x: torch.Tensor, offsets: torch.Tensor, *, transposed: bool
) -> torch.Tensor:
    """Each token with its expert's matrix: [N, in] -> [N, out]. offsets: int32[E], ends of the experts' tokens in x."""
    stack = getattr(experts, ATTRIBUTE, {}).get(name)
    if stack is None:
        weight = getattr(experts, name)
        return grouped(x, weight if transposed else weight.transpose(1, 2), offsets)
    result: torch.Tensor = _PackedProduct.apply(x.to(stack.compute), stack, offsets, transposed)  # type: ignore[no-untyped-call]
    return result


def grouped(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """transformers' grouped product, in the dtype of the weights. x: [N, in]; weight: [E, in, out]; returns [N, out]."""
    from transformers.integrations.moe import _grouped_mm

    result: torch.Tensor = _grouped_mm(x, weight, offsets)
    return result


class _PackedProduct(torch.autograd.Function):
    """`grouped` with a quantized stack. It keeps no dequantized stack for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stack: Packed, offsets: torch.Tensor, transposed: bool) -> Any:
        ctx.stack, ctx.transposed = stack, transposed
        ctx.save_for_backward(offsets)
        weight = stack.dequantized().to(stack.compute)
        return grouped(x, weight if transposed else weight.transpose(1, 2), offsets)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        (offsets,) = ctx.saved_tensors
        weight = ctx.stack.dequantized().to(ctx.stack.compute)
        turned = weight.transpose(1, 2) if ctx.transposed else weight
        return grouped(gradient.contiguous(), turned, offsets), None, None, None
