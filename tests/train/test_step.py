"""Sums over micro-batches."""

from __future__ import annotations

import pytest
import torch

from tailor.methods import LossSum
from tailor.train.step import Totals


@pytest.mark.parametrize(("device", "dtype"), [("cpu", 64), ("cuda", 64), ("cuda:1", 64), ("mps", 32)])
def test_sums_have_64_bits_where_the_device_has_them(device: str, dtype: int) -> None:
    assert Totals(torch.device(device))._dtype == {64: torch.float64, 32: torch.float32}[dtype]


def test_a_small_loss_is_not_lost_in_a_large_sum() -> None:
    """In float32, 2 ** 24 + 1 is 2 ** 24."""
    totals = Totals(torch.device("cpu"))
    for value in (2.0**24, 1.0, 1.0):
        totals.add(LossSum(torch.tensor(value)), is_padding=False)
    assert totals.over_workers(1)["loss"] == 2**24 + 2
    control = torch.tensor(2.0**24) + torch.tensor(1.0) + torch.tensor(1.0)
    assert float(control) == 2**24
