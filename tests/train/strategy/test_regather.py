"""Routed experts under ZeRO-3: the graph keeps no gathered stack, and the gradients are those of `grouped_mm`."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
import torch
from torch import nn

from tailor.train.strategy import regather

EXPERTS, INPUTS, OUTPUTS = 4, 8, 16
ENDS = torch.tensor([3, 3, 7, 12], dtype=torch.int32)
"""Of the tokens of each expert. The second has none."""


class Status(Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2


def sharded(whole: torch.Tensor, *, trained: bool) -> Any:
    """A parameter with the methods that DeepSpeed gives to one that it shards, gathered."""
    parameter: Any = nn.Parameter(whole.clone(), requires_grad=trained)
    parameter.ds_status = Status.AVAILABLE
    parameter.calls = []

    def all_gather() -> None:
        parameter.calls.append("all_gather")
        parameter.data, parameter.ds_status = whole.clone(), Status.AVAILABLE

    def partition() -> None:
        parameter.calls.append("partition")
        parameter.data, parameter.ds_status = torch.empty(0), Status.NOT_AVAILABLE

    parameter.all_gather, parameter.partition = all_gather, partition
    return parameter


def kept(product: Any, x: torch.Tensor, weight: torch.Tensor, memory: int) -> tuple[torch.Tensor, list[Any]]:
    """A product, and what its graph keeps of the memory at this address, other than parameters."""
    found: list[Any] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() == memory and not isinstance(tensor, nn.Parameter):
            found.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return product(x, weight, offs=ENDS), found


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_graph_keeps_no_gathered_stack(trained: bool, transposed: bool) -> None:
    torch.manual_seed(0)
    shape = (EXPERTS, OUTPUTS, INPUTS) if transposed else (EXPERTS, INPUTS, OUTPUTS)
    whole, x = torch.randn(shape), torch.randn(12, INPUTS, requires_grad=True)
    gradient = torch.randn(12, OUTPUTS)

    def turned(weight: torch.Tensor) -> torch.Tensor:
        return weight.transpose(1, 2) if transposed else weight

    plain = nn.Parameter(whole.clone(), requires_grad=trained)
    expected, views = kept(nn.functional.grouped_mm, x, turned(plain), plain.data_ptr())
    assert bool(views) == transposed, "the control"
    parameter = sharded(whole, trained=trained)
    found, views = kept(regather._grouped, x, turned(parameter), parameter.data_ptr())
    assert not views
    parameter.partition()
    inputs = [x, plain] if trained else [x]
    theirs = torch.autograd.grad(expected, inputs, gradient)
    ours = torch.autograd.grad(found, [x, parameter] if trained else [x], gradient)
    assert parameter.calls == ["partition", "all_gather", "partition"]
    for left, right in zip((found, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_gathered_stack_is_not_gathered_again_and_other_tensors_are_left_alone() -> None:
    x = torch.randn(12, INPUTS, requires_grad=True)
    parameter = sharded(torch.randn(EXPERTS, OUTPUTS, INPUTS), trained=False)
    regather._grouped(x, parameter.transpose(1, 2), offs=ENDS).sum().backward()
    assert parameter.calls == []
    for weight in (torch.randn(EXPERTS, INPUTS, OUTPUTS), parameter[:, :INPUTS, :].transpose(1, 2)):
        found = regather._grouped(x, weight, offs=ENDS)
        assert type(found.grad_fn).__name__ != "_GroupedProductBackward"
