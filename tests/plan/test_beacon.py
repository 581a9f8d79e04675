"""Plans with activation beacons: unsupported models are rejected before loading; trained weights and memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailor.errors import DataError, ModelError
from tailor.plan import DataFacts, Hardware, ModelFacts, Plan, beacon, build
from tailor.spec.model import Beacon
from tailor.spec.recipe import Recipe
from tests.helpers.beacons import network, with_beacons

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 261,
    "max_position_embeddings": 256,
}
GPU = Hardware("cuda", 80 * 2**30, bf16=True)


def plan(longest: int = 400, config: dict[str, Any] | None = None, **spec: Any) -> Plan:
    recipe = Recipe.model_validate(
        {
            "model": {"path": "org/model", "beacon": {"window": 64, "ratios": [4, 8], **spec}},
            "data": {"train": [{"path": "x"}], "pack": False},
            "method": {"name": "sft"},
            "optim": {"learning_rate": 1e-4},
            "save": {"to": "runs/x"},
        }
    )
    data = DataFacts("tokens", "f", "t", 1000, 100, 500_000, 300_000, longest, longest, 32, 32, 30, 90)
    return build(recipe, data, {**CONFIG, **(config or {})}, GPU, run_url="runs/x")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            {"model_type": "gemma2"},
            "beacons support the model types llama, mistral, qwen2, qwen3, and this model has type gemma2",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r"\(dynamic\) changes its frequencies with the sequence length",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            r"\(longrope\) changes its frequencies with the sequence length",
        ),
        ({"model_type": "mistral", "sliding_window": 4096}, "attend only to the last 4096 tokens"),
        (
            {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True},
            "attend only to the last 32 tokens",
        ),
        ({"partial_rotary_factor": 0.5}, "rotates only a part of each head"),
    ],
)
def test_unsupported_models_are_rejected(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        plan(config=config)
    plan(config={"rope_parameters": {"rope_type": "yarn", "factor": 4.0}})


def test_documents_must_fit_the_positions_with_the_coarsest_ratio() -> None:
    plan(longest=1000)  # far over the 256 positions of the base
    with pytest.raises(ModelError, match=r"needs 272 positions even with ratio 8.*supports 256") as caught:
        plan(longest=1700)
    assert "set data.max_length: 1600 or less, or add a larger ratio" in str(caught.value.hint)
    plan(longest=1600)
    with pytest.raises(
        DataError, match=r"the longest example has 64 tokens and fits into one window \(64 tokens\)"
    ):
        plan(longest=64)


def test_trained_parameters_are_exact() -> None:
    for spec in ({}, {"rank": 3}, {"projections": ["k", "v"]}):
        made = with_beacons(network(), **spec)
        trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
        assert plan(**spec).trained_parameters == trained
        assert plan(**spec).memory.gradients == 4 * trained


class LiveBytes(TorchDispatchMode):
    """Peak bytes of tensors created in this context. known: tensors that existed before."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_forecast_is_near_the_measured_peak(checkpointing: bool) -> None:
    """Activations of one document, forward and backward, against the forecast; and that it grows as they do."""
    config = {**CONFIG, "max_position_embeddings": 65536, "num_hidden_layers": 4}
    facts, spec = ModelFacts.from_config(config), Beacon(window=128, ratios=[4])
    model = with_beacons(network(num_hidden_layers=4), window=128, ratios=[4]).train()
    if checkpointing:
        model.network.activation_checkpointing_enable()
    measured, forecast = [], []
    for length in (512, 1536):
        model.zero_grad(set_to_none=True)
        with LiveBytes(list(model.parameters())) as live:
            model.read(torch.randint(3, 261, (1, length)), (4,) * (length // 128 - 1)).sum().backward()
        gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
        measured.append(live.peak - gradients)
        forecast.append(
            beacon.activations(facts, spec, rows=1, length=length, width=2.0, checkpointing=checkpointing)
        )
    for actual, predicted in zip(measured, forecast, strict=True):
        assert 0.7 <= predicted / actual <= 1.6, (actual, predicted)
    growth = (forecast[1] - forecast[0]) / (measured[1] - measured[0])
    assert 0.7 <= growth <= 1.5
