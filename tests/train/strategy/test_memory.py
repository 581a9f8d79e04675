"""What a worker does not hold: gradients twice under ddp, and weights that stage 3 has let go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tailor.train import loop
from tailor.train.session import Session
from tailor.train.strategy.ddp import DataParallel
from tailor.train.strategy.deepspeed import Zero
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    folder = tmp_path_factory.mktemp("memory")
    return tiny_llama(folder / "model"), make_store(folder / "tokens", [40] * 40), folder


def planned(made: tuple[Path, Any, Path], strategy: Any) -> Any:
    model, tokens, folder = made
    train = {"steps": 3, "batch_size": 4}  # two micro-batches a step for each of two workers
    return make_plan(model, tokens, folder / "run", train=train, scale={"workers": 2, "strategy": strategy})


def test_gradients_stay_in_the_buckets(made: tuple[Path, Any, Path]) -> None:
    plan = planned(made, "ddp")
    for found, control in run_distributed(gradients_with_control, plan):
        assert found == 0, "every gradient is in its bucket after every micro-batch"
        assert control > 0, "plain DDP has those of the first micro-batch outside its buckets"


def gradients_with_control(host: PlainHost, plan: Any) -> tuple[int, int]:
    control = dataclasses.replace(plan, run_url=f"{plan.run_url}-control")
    return gradients_in_three_steps(host, plan, True), gradients_in_three_steps(host, control, False)


def gradients_in_three_steps(host: PlainHost, plan: Any, prepared: bool) -> int:
    """How many gradients lay elsewhere than after the last micro-batch, which is reduced in the buckets."""
    if not prepared:
        DataParallel._make_buckets = lambda self: None  # type: ignore[method-assign]
        DataParallel.skip = lambda self: self.optimizer.zero_grad(set_to_none=True)  # type: ignore[method-assign]
    places: list[tuple[int, ...]] = []

    backward = DataParallel.backward

    def watched(self: Any, loss: torch.Tensor, denominator: int) -> None:
        backward(self, loss, denominator)
        places.append(tuple(p.grad.data_ptr() for p in self.model.parameters() if p.grad is not None))

    DataParallel.backward = watched  # type: ignore[method-assign]
    loop.run(plan, host)
    buckets = set(places[-1])
    return sum(place not in buckets for each in places for place in each)


@pytest.mark.parametrize("mixture", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_stage_3_keeps_no_gathered_weight_for_the_backward_pass(
    made: tuple[Path, Any, Path], tmp_path: Path, mixture: bool
) -> None:
    made = (
        (MIXTURES["mixtral"].make(tmp_path, hidden_size=80, intermediate_size=48), *made[1:])
        if mixture
        else made
    )
    plan = planned(made, {"name": "deepspeed", "stage": 3})
    assert run_distributed(weights_kept_by_autograd, plan, True) == [[], []]
    assert all(run_distributed(weights_kept_by_autograd, plan, False)), "the control: PyTorch's linear layers"


def weights_kept_by_autograd(host: PlainHost, plan: Any, letting_go: bool) -> list[tuple[int, ...]]:
    """Shapes of the views of weights that the graph of a training pass keeps."""
    if not letting_go:
        from contextlib import nullcontext

        Zero._regathered_weights = lambda self: nullcontext()  # type: ignore[method-assign,assignment]
    shapes: set[tuple[int, ...]] = set()
    kept: list[tuple[int, ...]] = []
    forward = Zero.forward

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        turned = (*tensor.shape[:-2], *tensor.shape[:-3:-1])
        if not isinstance(tensor, nn.Parameter) and turned in shapes and tensor._is_view():
            kept.append(tuple(tensor.shape))
        return tensor

    def watched(self: Any, *arguments: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return forward(self, *arguments)

    def probe(session: Session, when: str, step: int) -> None:
        shapes.update(
            tuple(p.ds_shape) for p in session.model.network.model.layers.parameters() if len(p.ds_shape) > 1
        )

    Zero.forward = watched  # type: ignore[method-assign]
    loop.run(plan, host, probes=[probe])
    return kept
