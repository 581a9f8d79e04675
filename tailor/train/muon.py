"""Muon for the matrices of hidden layers, with AdamW for the other weights (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` as one optimizer, with the parameter groups and the state of both.

    Muon's updates are scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that both have the
    same learning rate and weight decay.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        matrices: Collection[int],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """groups: of all weights. matrices: ids of those that Muon trains; each has two dimensions."""
        for_muon, others = (
            [
                {**group, "params": chosen}
                for group in groups
                if (chosen := [p for p in group["params"] if (id(p) in matrices) == is_matrix])
            ]
            for is_matrix in (True, False)
        )
        self._parts: list[torch.optim.Optimizer] = []
        if for_muon:
            muon = torch.optim.Muon(for_muon, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=True))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all weights. closure: not supported."""
        assert closure is None
        first = 0
        for part in self._parts:  # loading a state replaces the groups and the state
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            part.step()
            first = last
