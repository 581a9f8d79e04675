"""The forecast of a mixture of experts, beside the bytes of the tensors that a step really has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.models.outline import build, read
from tailor.models.router import Router
from tailor.plan import ModelFacts, activation_memory
from tailor.plan.experts import largest_stack, router_losses
from tailor.plan.outline import Outline
from tailor.spec.adapter import Adapter
from tailor.spec.model import Model
from tests.helpers.mixtures import MIXTURES
from tests.plan import test_memory
from tests.plan.test_memory import KINDS, LONG, SHORT, WAYS, counts, forecasts, slope, small_tiles
from tests.plan.test_strategy_memory import GPU, LORA, MODEL, made, memory

__all__ = ["small_tiles"]
ADAPTED: dict[str, Any] = {"adapter": {"rank": 8, "experts": True}}
MIXTURE_KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "attention": {"adapter": {"rank": 8}},
    "experts": ADAPTED,
    "experts, rank 4": {"adapter": {"rank": 4, "experts": True}},
    "nf4 experts": {**ADAPTED, "quantize": {"type": "nf4"}},
}
LARGE = {**MODEL, "model_type": "mixtral", "num_local_experts": 16, "num_experts_per_tok": 2}
STACK = 16 * 2 * 2048 * 768
"""Weights of the gates and the up projections of a layer of LARGE, more than a bucket."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 3, "num_key_value_heads": 4}
    experts = {"num_local_experts": 32, "num_experts_per_tok": 4, "max_position_embeddings": 2048}
    return MIXTURES["mixtral"].make(tmp_path_factory.mktemp("mixture"), **sizes, **experts)


@pytest.fixture(autouse=True)
def mixture_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, model in MIXTURE_KINDS.items():
        monkeypatch.setitem(KINDS, kind, model)


def compare(path: Path, **options: Any) -> None:
    """The growth with each token, and what does not grow, besides weights and their gradients."""
    measured = [one.peak for one in counts(path, **options)]
    made = [forecasts(path, tokens, **options) for tokens in (SHORT, LONG)]
    beside = [one.peak - one.weights - one.gradients - one.optimizer for one in made]
    assert slope(beside) == pytest.approx(slope(measured), rel=0.05)
    if not options["activation_checkpointing"]:
        assert beside[0] == pytest.approx(measured[0], rel=0.05)


@pytest.mark.parametrize(
    ("kind", "mixed", "way"),
    [
        ("all weights", False, "every layer"),
        ("experts", True, "every layer"),
        ("experts, rank 4", False, "kept"),
    ],
)
def test_the_forecast_matches_a_step(path: Path, kind: str, mixed: bool, way: str) -> None:
    compare(path, kind=kind, mixed=mixed, **WAYS[way])


@pytest.mark.soak
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("way", ["kept", "every layer"])
@pytest.mark.parametrize("kind", ["all weights", "attention", "experts", "experts, rank 4"])
def test_all_of_them(path: Path, kind: str, mixed: bool, way: str) -> None:
    compare(path, kind=kind, mixed=mixed, **WAYS[way])


def test_control_the_gradients_of_the_sum_matter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way: dict[str, Any] = {**WAYS["every layer"], "kind": "experts", "mixed": True}
    right = slope([forecasts(path, tokens, **way).peak for tokens in (SHORT, LONG)])
    monkeypatch.setattr(activation_memory, "_experts_backward", lambda facts, trained, kept: kept)
    assert slope([forecasts(path, tokens, **way).peak for tokens in (SHORT, LONG)]) < 0.8 * right


def test_the_losses_of_the_routers_keep_their_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way: dict[str, Any] = {**WAYS["every layer"], "kind": "attention"}
    plain = [one.peak for one in counts(path, **way)]
    model = Model.model_validate({"path": str(path), "router_aux_loss": 0.01, "router_z_loss": 0.01})

    def with_losses(network: Any, batch: Any, tile_bytes: int) -> torch.Tensor:
        network.router = Router.of(network.base.config, model)
        return network.training_loss(batch)[0]

    monkeypatch.setattr(test_memory, "step_loss", with_losses)
    grown = slope([one.peak for one in counts(path, **way)]) - slope(plain)
    losses = router_losses({}, model)
    more, less = (
        slope([forecasts(path, tokens, **way, router_losses=number).peak for tokens in (SHORT, LONG)])
        for number in (losses, 0)
    )
    assert losses == 2
    assert more - less == pytest.approx(grown, rel=0.05)
    assert grown >= 4 * 3 * 32


def test_which_losses_the_routers_have() -> None:
    asked = {"output_router_logits": True, "router_aux_loss_coef": 0.01}
    assert router_losses(asked, Model(path="x")) == 1
    assert router_losses(asked, Model(path="x", router_aux_loss=0.0)) == 0
    assert router_losses({**asked, "output_router_logits": False}, Model(path="x", router_z_loss=0.1)) == 1


@pytest.mark.parametrize("patterns", [{}, {"experts.gate_up_proj": 4}])
def test_adapters_on_experts_are_estimated_without_an_outline(path: Path, patterns: dict[str, int]) -> None:
    spec = Model(path=str(path))
    outline = read(build(spec), spec)
    assert isinstance(outline, Outline)
    config = json.loads((path / "config.json").read_text())
    known, estimated = ModelFacts.from_config(config, outline), ModelFacts.from_config(config)
    assert list(estimated.stacks.values()) == list(known.stacks.values())
    adapters = [Adapter(rank=8, rank_pattern=patterns, experts=experts) for experts in (True, None)]
    on_experts, plain = (known.adapter_parameters(adapter) for adapter in adapters)
    assert estimated.adapter_parameters(adapters[0]) == on_experts > 5 * plain
    assert estimated.adapter_parameters(adapters[1]) == plain


def test_all_experts_count_as_weights_and_the_active_ones_as_activations() -> None:
    """Twice as many experts double their weights, and add only the probabilities of the routers to the activations."""
    few, many = (memory("ddp", config={**LARGE, "num_local_experts": count}) for count in (16, 32))
    added = 8 * 16 * 3 * 768 * 2048
    assert many.weights - few.weights == many.gradients - few.gradients == 4 * added
    assert many.activations - few.activations == pytest.approx(256 * 8 * 4 * 16, rel=0.2)
    wider = memory("ddp", config={**LARGE, "num_experts_per_tok": 4})
    assert wider.weights == few.weights
    assert wider.activations > few.activations + 256 * 8 * 4 * 2 * 2 * (768 + 2 * 2048), "the control"


def test_a_stack_that_is_larger_than_a_bucket_is_reduced_by_itself() -> None:
    assert largest_stack(ModelFacts.from_config(LARGE).stacks) == STACK > 2**23
    dense = {**LARGE, "num_local_experts": 1, "intermediate_size": 16 * 2048}
    for strategy, copies in (("zero-2", 4), ("zero-3", 8)):
        mixture, plain = (memory(strategy, config=config).exchange for config in (LARGE, dense))
        assert mixture - plain > copies * (STACK - 2**23) / 2, strategy
    full, lora = (made("ddp", 8, GPU, "bf16", model, LARGE) for model in (None, LORA))
    experts = 8 * 3 * STACK // 2
    assert full.memory.exchange >= 4 * STACK
    assert full.memory.exchange < 2 * experts, (
        "the products of experts make no 16-bit copies of their weights"
    )
    assert lora.memory.exchange == 2 * lora.trained_parameters, "the control"
