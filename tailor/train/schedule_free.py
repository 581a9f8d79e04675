"""Schedule-free AdamW: averaged weights instead of a decaying learning rate (Defazio et al. 2024, arXiv 2405.15682)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tailor.errors import ModelError

PROGRESS = ("k", "weight_sum", "lr_max")
"""Numbers of a parameter group that change in every step."""


def schedule_free(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """The optimizer of the package `schedulefree`, whose state can be saved. ModelError if it is not installed.

    The gradients belong to the weights y, the model is evaluated and saved with their average x. Between two steps the
    model has y; the method `averaged` gives x.
    """
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise ModelError(
            f"optim.optimizer schedule_free needs the package schedulefree: {error}",
            hint="pip install 'tailor[schedulefree]' wherever workers run",
        ) from error

    class ScheduleFree(AdamWScheduleFree):  # type: ignore[misc]
        @contextmanager
        def averaged(self) -> Iterator[None]:
            """Context in which the weights are x. The way back from x to y would round, so y is kept."""
            kept = [p.clone() for group in self.param_groups for p in group["params"]]
            self.eval()
            try:
                yield
            finally:
                for group in self.param_groups:
                    group["train_mode"] = True
                parameters = (p for group in self.param_groups for p in group["params"])
                with torch.no_grad():
                    for parameter, y in zip(parameters, kept, strict=True):
                        parameter.copy_(y)

        def state_dict(self) -> dict[str, Any]:
            """With y and the progress of the group in the state of each weight, because a checkpoint has x as its weights."""
            saved: dict[str, Any] = super().state_dict()
            numbered = [(group, p) for group in self.param_groups for p in group["params"]]
            for number, state in saved["state"].items():
                group, parameter = numbered[number]
                progress = {key: group[key] for key in PROGRESS}
                saved["state"][number] = {**state, "y": parameter.detach(), **progress}
            return saved

        @torch.no_grad()
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                for parameter in group["params"]:
                    if state := self.state.get(parameter):
                        parameter.copy_(state.pop("y"))
                        group |= {key: state.pop(key) for key in PROGRESS}

    optimizer = ScheduleFree(groups, lr=lr, betas=betas, eps=eps)
    optimizer.train()
    return optimizer
