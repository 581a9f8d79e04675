"""Products that do not keep the weights that ZeRO-3 gathers: the backward pass gathers them again.

PyTorch's `linear` and `grouped_mm` (of routed experts) save a transposed view of the weight. The views would keep all gathered
weights of the model alive until the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

_OWNER: Any
_OWNER, _NAME = (
    (nn.functional, "grouped_mm") if hasattr(nn.functional, "grouped_mm") else (torch, "_grouped_mm")
)
_grouped_mm = getattr(_OWNER, _NAME)


@contextmanager
def regathering() -> Iterator[None]:
    """Context in which linear layers and routed experts compute without keeping gathered weights."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.functional, "linear", zero3_linear_wrap))
        stack.enter_context(mock.patch.object(_OWNER, _NAME, _grouped))
        yield


def _grouped(
    x: torch.Tensor, weight: torch.Tensor, *, offs: torch.Tensor | None = None, **others: Any
) -> Any:
    """`grouped_mm` of transformers' and tailor's experts. weight: a sharded parameter, its transpose, or any other tensor."""
    parameter = weight._base if weight._is_view() else weight
    transposed = parameter is not weight
    if not _is_sharded(parameter) or (transposed and not _is_transpose(weight, parameter)):
        return _grouped_mm(x, weight, offs=offs, **others)
    return _GroupedProduct.apply(x, parameter, offs, transposed)  # type: ignore[no-untyped-call]


def _is_sharded(parameter: Any) -> bool:
    return hasattr(parameter, "ds_status")


def _is_transpose(weight: torch.Tensor, parameter: Any) -> bool:
    turned = parameter.transpose(-2, -1) if parameter.ndim == 3 else parameter
    return (weight.shape, weight.stride()) == (turned.shape, turned.stride())


class _GroupedProduct(torch.autograd.Function):
    """x: [N, in]; parameter: [E, in, out], or [E, out, in] if transposed; offs: int32[E]; returns [N, out].

    The context has the parameter itself, whose data DeepSpeed replaces. `save_for_backward` would keep its data under hooks for
    saved tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, parameter: Any, offs: torch.Tensor, transposed: bool) -> Any:
        ctx.save_for_backward(x, offs)
        ctx.parameter, ctx.transposed = parameter, transposed
        return _grouped_mm(x, parameter.transpose(-2, -1) if transposed else parameter, offs=offs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, offs = ctx.saved_tensors
        parameter = ctx.parameter
        gradient = gradient.contiguous()
        of_x = of_parameter = None
        gather = parameter.ds_status.name == "NOT_AVAILABLE"
        if gather:
            parameter.all_gather()
        try:
            if ctx.needs_input_grad[0]:
                of_x = _grouped_mm(
                    gradient, parameter if ctx.transposed else parameter.transpose(-2, -1), offs=offs
                )
            if ctx.needs_input_grad[1]:
                rows, columns = (gradient, x) if ctx.transposed else (x, gradient)
                of_parameter = _grouped_mm(rows.t(), columns, offs=offs)
        finally:
            if gather:
                parameter.partition()
        return of_x, of_parameter, None, None
