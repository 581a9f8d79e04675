"""The forecast of a long sequence's memory, beside the bytes of the tensors that a step really has.

Bytes per token, from two lengths, so that weights and tiles of constant size drop out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.models import activations
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate
from tailor.models.documents import TokenBatch
from tailor.models.loss import summed_cross_entropy
from tailor.plan import ModelFacts, activation_memory, memory
from tailor.plan.memory import Memory, forecast
from tailor.spec.model import Model
from tests.helpers.live_bytes import LiveBytes, measured
from tests.helpers.models import load_model, tiny_llama

SHORT, LONG = 512, 1024
MLP_TILE = 4 * 512 * 32
"""Rows of 32 tokens."""
LOSS_TILE = 4 * 261 * 64
ADAPTER: dict[str, Any] = {"rank": 4}
ATTENTION: dict[str, Any] = {**ADAPTER, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": ADAPTER},
    "lora on attention": {"adapter": ATTENTION},
    "lora and embedding": {"adapter": {**ATTENTION, "modules_to_save": ["embed_tokens"]}},
    "lora with dropout": {"adapter": {**ADAPTER, "dropout": 0.1}},
    "qlora": {"adapter": ADAPTER, "quantize": {"type": "nf4"}},
    "full": {},
}
WAYS: dict[str, dict[str, Any]] = {
    "kept": {"activation_checkpointing": 0},
    "kept, tiled": {"activation_checkpointing": 0, "tiled_mlp": True},
    "every layer": {"activation_checkpointing": 1},
    "every second layer": {"activation_checkpointing": 2},
    "every third layer": {"activation_checkpointing": 3},
    "offloaded": {"activation_checkpointing": 1, "activation_offloading": True},
    "tiled": {"activation_checkpointing": 1, "tiled_mlp": True},
    "every second layer, tiled": {"activation_checkpointing": 2, "tiled_mlp": True},
    "tiled and offloaded": {"activation_checkpointing": 1, "tiled_mlp": True, "activation_offloading": True},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    return tiny_llama(tmp_path_factory.mktemp("model"), **shape)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_memory, "MLP_TILE_BYTES", MLP_TILE)
    monkeypatch.setattr(activations, "TILE_BYTES", MLP_TILE)
    monkeypatch.setattr(memory, "LOSS_TILE_BYTES", LOSS_TILE)


def forecasts(path: Path, tokens: int, *, kind: str = "lora", mixed: bool = False, **way: Any) -> Memory:
    return forecast(
        ModelFacts.from_config(json.loads((path / "config.json").read_text())),
        Model.model_validate({"path": str(path), **KINDS[kind]}),
        optimizer="adamw",
        frozen_dtype="bfloat16" if mixed else "float32",
        mixed_precision=mixed,
        rows=1,
        length=tokens,
        on_host=True,
        **way,
    )


def step_loss(model: CausalModel, batch: TokenBatch, tile_bytes: int) -> torch.Tensor:
    return summed_cross_entropy(*model.at_predictions(batch), tile_bytes=tile_bytes)


def counts(path: Path, *, kind: str = "lora", mixed: bool = False, **way: Any) -> list[LiveBytes]:
    """Of a step at either length, when all gradients exist already, as in every step but the first."""
    model = load_model(
        Model.model_validate({"path": str(path), **KINDS[kind]}),
        precision="bf16" if mixed else "fp32",
        pack=True,
        **way,
    ).train()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    found = []
    for tokens in (SHORT, LONG):
        ids = np.random.default_rng(0).integers(5, 261, size=tokens + 1)
        batch = collate([[Document(ids[:-1], ids[1:])]], "stream")

        def step(batch: Any = batch) -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                loss = step_loss(model, batch, tile_bytes=LOSS_TILE)
            loss.backward()

        found.append(measured(step))
    return found


def slope(values: list[int]) -> float:
    return (values[1] - values[0]) / (LONG - SHORT)


def compare(path: Path, **options: Any) -> None:
    counted = counts(path, **options)
    made = [forecasts(path, tokens, **options) for tokens in (SHORT, LONG)]
    assert slope([one.peak for one in made]) == pytest.approx(slope([one.peak for one in counted]), rel=0.1)
    assert [one.host for one in made] == [one.host for one in counted]


@pytest.mark.parametrize("way", WAYS)
def test_the_forecast_matches_a_step(path: Path, way: str) -> None:
    compare(path, **WAYS[way])


@pytest.mark.parametrize("way", ["every layer", "kept, tiled", "tiled and offloaded"])
def test_in_mixed_precision(path: Path, way: str) -> None:
    compare(path, mixed=True, **WAYS[way])


@pytest.mark.parametrize(
    ("kind", "mixed", "way"),
    [
        ("qlora", True, "every second layer"),
        ("qlora", False, "tiled"),
        ("lora on attention", False, "kept"),
        ("lora on attention", True, "every layer"),
        ("lora and embedding", True, "offloaded"),
        ("lora with dropout", True, "every layer"),
        ("full", False, "every second layer"),
        ("full", False, "tiled"),
        ("full", True, "kept"),
        ("full", True, "every layer"),
    ],
)
def test_whatever_is_trained(path: Path, kind: str, mixed: bool, way: str) -> None:
    compare(path, kind=kind, mixed=mixed, **WAYS[way])


@pytest.mark.soak
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_them(path: Path, kind: str, mixed: bool, way: str) -> None:
    compare(path, kind=kind, mixed=mixed, **WAYS[way])


def test_control_each_way_has_another_slope(path: Path) -> None:
    slopes = {
        way: slope([forecasts(path, tokens, **options).peak for tokens in (SHORT, LONG)])
        for way, options in WAYS.items()
    }
    assert slopes["kept"] > 1.5 * slopes["every second layer"] > 2 * slopes["every layer"]
    assert slopes["every layer"] > 1.05 * slopes["offloaded"] > 1.5 * slopes["tiled and offloaded"]


def test_sequence_parallel_workers_divide_the_memory_of_a_sequence(path: Path) -> None:
    """Half the tokens each; keys and values are copied where there are fewer heads of them."""
    way = WAYS["tiled"]
    alone, two, four = (
        slope([forecasts(path, tokens, **way, sequence_parallel=parts).peak for tokens in (SHORT, LONG)])
        for parts in (1, 2, 4)
    )
    assert two == pytest.approx(alone / 2, rel=1e-3)
    assert alone / 4 < four < alone / 3.5


def test_llama_8b_at_eighty_thousand_tokens() -> None:
    """2 · H · L bytes a token of layers' inputs in bf16: 20 GiB for 81 920 tokens, on the GPU or on the host."""
    facts = ModelFacts.from_config(
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        }
    )

    def made(**way: Any) -> Memory:
        return forecast(
            facts,
            Model.model_validate({"path": "m", "adapter": {"rank": 32}, "quantize": {}}),
            optimizer="adamw",
            frozen_dtype="bfloat16",
            mixed_precision=True,
            activation_checkpointing=1,
            rows=1,
            length=81920,
            **way,
        )

    inputs = 2 * 4096 * 32 * 81920
    plain, away = made(), made(activation_offloading=True)
    assert plain.peak - away.peak == pytest.approx(inputs * 31 / 32, rel=1e-6), (
        "but one layer's, which is computed"
    )
    assert (plain.host, away.host) == (0, inputs)
    assert made(activation_offloading=True, sequence_parallel=8).host == inputs // 8
    assert made(tiled_mlp=True).activations < plain.activations - 6 * 2**30
