"""Methods and models of their own kind on a GPU: the curve is the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.spec.optim import Optim
from tailor.train.optimizer import build_optimizer, load_state
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store
from tests.helpers.strategies import curve
from tests.train.test_gritlm import METHOD, TRAIN

pytestmark = pytest.mark.gpu

TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""A GPU's matrix products add in another order; in bf16 they also round elsewhere."""


def same_as_on_a_cpu(base: Path, tokens: Any, folder: Path, precision: str, /, **sections: Any) -> None:
    sections["train"] = {**sections.get("train", {}), "precision": precision}
    curves = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        curves.append(
            curve(PlainHost(device=device), make_plan(base, tokens, folder / device.type, **sections))
        )
    for figure in ("losses", "evaluations"):
        assert curves[1][figure] == pytest.approx(curves[0][figure], abs=TOLERANCE[precision])


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("engine", ["gradcache", "chunk_checkpoint"])
def test_gritlm(tmp_path: Path, engine: str, precision: str) -> None:
    tokens = make_grit_store(tmp_path / "tokens", queries=13, examples=7, evaluation=5)
    method = {**METHOD, "engine": engine}
    same_as_on_a_cpu(tiny_llama(tmp_path / "model"), tokens, tmp_path, precision, method=method, train=TRAIN)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_activation_beacons(tmp_path: Path, precision: str) -> None:
    tokens = make_store(tmp_path / "tokens", [40, 55, 60, 48] * 6, evaluation=[50, 60])
    beacon = {"beacon": {"window": 16, "ratios": [2, 4]}}
    sections = {"model": beacon, "data": {"pack": False}, "train": {"activation_checkpointing": True}}
    same_as_on_a_cpu(tiny_llama(tmp_path / "model"), tokens, tmp_path, precision, **sections)


@pytest.mark.parametrize("rope", ["yarn", "llama3"])
def test_a_stretched_model(tmp_path: Path, rope: str) -> None:
    lengths = {"length": 256, "original_length": 64, "factor": 4}
    bounds = {"low_freq_factor": 1, "high_freq_factor": 4} if rope == "llama3" else {}
    model = {"rope": {"name": rope, **lengths, **bounds}, "adapter": {"rank": 4}}
    base = tiny_llama(tmp_path / "model", max_position_embeddings=64)
    tokens = make_store(tmp_path / "tokens", [40, 155, 200, 48] * 6, evaluation=[50, 160])
    same_as_on_a_cpu(base, tokens, tmp_path, "bf16", model=model, data={"max_length": 256})


def test_a_paged_optimizer_continues_in_pages() -> None:
    """bitsandbytes' own loading moves the state to the GPU."""
    start, inputs = torch.randn(512, 512), torch.randn(4, 512, device="cuda")

    def built() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        model = torch.nn.Linear(512, 512, bias=False, device="cuda")
        model.weight.data.copy_(start)
        return model, build_optimizer(Optim(learning_rate=1e-2, optimizer="paged_adamw"), model)

    def step(model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (model, optimizer), (resumed, loaded) = built(), built()
    step(model, optimizer)
    resumed.load_state_dict(model.state_dict())
    load_state(loaded, optimizer.state_dict())
    state = loaded.state[resumed.weight]
    assert all(getattr(state[key], "is_paged", False) for key in ("state1", "state2"))
    step(model, optimizer)
    step(resumed, loaded)
    assert torch.equal(model.weight, resumed.weight)
