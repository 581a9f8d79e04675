"""Every strategy on one GPU, over NCCL: it computes what plain training computes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store
from tests.helpers.strategies import STRATEGIES, curve
from tests.train.strategy.test_parity import OFFLOADED

pytestmark = pytest.mark.gpu

MODELS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"model": {"adapter": LORA}}}
SHARED = {name: strategy for name, strategy in STRATEGIES.items() if name != "ddp"} | OFFLOADED
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
"""Kernels of another order of sums; weights that are rounded to bf16 before a product or after."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("gpu")
    tokens = make_store(folder / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30])
    return tiny_llama(folder / "model"), tokens


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SHARED)
def test_a_strategy_gives_the_curve_of_plain_training(
    made: Any, tmp_path: Path, name: str, model: str, precision: str
) -> None:
    sections = {**MODELS[model], "train": {"precision": precision, "activation_checkpointing": True}}
    curves = []
    for run, strategy in (("plain", "ddp"), ("shared", SHARED[name])):
        host = PlainHost(device=torch.device("cuda", 0))
        plan = make_plan(*made, tmp_path / run, **sections, scale={"strategy": strategy})
        curves.append(curve(host, plan))
    for figure in ("losses", "evaluations"):
        assert curves[1][figure] == pytest.approx(curves[0][figure], abs=TOLERANCE[precision])
