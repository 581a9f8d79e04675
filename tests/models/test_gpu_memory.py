"""What of memory only a GPU can show: what its allocator holds, and what is on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.models import activations
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate
from tailor.models.documents import TokenBatch
from tailor.spec.model import Model
from tailor.train import loop, throughput
from tests.helpers.hosts import PlainHost
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.gpu

HIDDEN, LAYERS, TOKENS = 256, 8, 4096
SHAPE: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 2048, "num_hidden_layers": LAYERS}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), **SHAPE, max_position_embeddings=TOKENS)


def load(path: Path, **options: Any) -> CausalModel:
    settings: dict[str, Any] = {"activation_checkpointing": 1, **options}
    return load_model(
        Model.model_validate({"path": str(path), "adapter": {"rank": 4}}),
        device=torch.device("cuda"),
        precision="bf16",
        pack=True,
        **settings,
    ).train()


def batch() -> TokenBatch:
    ids = np.random.default_rng(0).integers(5, 261, size=TOKENS + 1)
    return collate([[Document(ids[:-1], ids[1:])]], "stream").to(torch.device("cuda"))


def step(model: CausalModel) -> tuple[int, torch.Tensor]:
    """Bytes at the peak beside what was there before, and the gradients."""
    model.zero_grad()
    tokens = batch()
    with torch.autocast("cuda", dtype=torch.bfloat16):  # what the kernels keep for themselves
        model.next_token_loss(tokens).backward()
    model.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    throughput.begin_peak(torch.device("cuda"))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model.next_token_loss(tokens)
    loss.backward()
    peak = throughput.peak_memory_bytes(torch.device("cuda")) - before
    return peak, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_offloading_frees_the_layers_inputs_and_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded: list[torch.Tensor] = []
    to_host = activations._to_host

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        offloaded.append(to_host(tensor))
        return offloaded[-1]

    kept, gradients = step(load(path))
    model = load(path, activation_offloading=True)
    away, same = step(model)
    difference = (same - gradients).norm() / gradients.norm()
    again = step(load(path))[1]
    # A GPU's own sums may come in another order each time.
    assert difference <= max(1e-6, 2 * float((again - gradients).norm() / gradients.norm()))
    monkeypatch.setattr(activations, "_to_host", seen)
    step(model)
    assert all(tensor.is_pinned() and not tensor.is_cuda for tensor in offloaded)
    inputs = offloaded[0].numel() * offloaded[0].element_size()
    assert inputs == HIDDEN * TOKENS * offloaded[0].element_size()
    assert kept - away >= inputs * (LAYERS - 2)


def test_tiles_free_the_middle_of_the_feed_forward_blocks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step(load(path))[0]
    monkeypatch.setattr(activations, "TILE_BYTES", 4 * 2048 * 256)
    tiled = step(load(path, tiled_mlp=True))[0]
    assert whole - tiled > 2 * 2 * 2048 * TOKENS, "two bf16 tensors of the middle at least"


def test_memory_is_given_back_between_evaluation_and_training(tmp_path: Path, path: Path) -> None:
    """Evaluation rows are longer than training rows; training continues with the memory it had."""
    tokens = make_store(tmp_path / "tokens", [60] * 24, evaluation=[500] * 4)
    sections = {
        "data": {"max_length": 2048, "pack": False},
        "evaluate": {"every": 2},
        "train": {"precision": "bf16", "steps": 4},
    }
    host = PlainHost(device=torch.device("cuda"))
    reserved: list[tuple[str, int]] = []
    report = host.report

    def noting(record: dict[str, Any]) -> None:
        reserved.append((record["kind"], torch.cuda.memory_reserved()))
        report(record)

    host.report = noting  # type: ignore[method-assign]
    loop.run(make_plan(path, tokens, tmp_path / "run", **sections), host)
    peaks = {
        kind: [record["peak_memory_bytes"] for record in host.of(kind)] for kind in ("train", "evaluation")
    }
    # All weights are trained here, so the gradients alone are more than an evaluation needs.
    assert max(peaks["evaluation"]) < min(peaks["train"][1:])
    after = [number for kind, number in reserved if kind == "train"]
    assert after[3] <= 1.1 * after[1], "steps 4 and 2, on either side of an evaluation"
