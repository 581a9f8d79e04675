"""Compiled layers compute what they compute uncompiled, and other lengths of documents compile nothing again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.errors import ModelError
from tailor.models import attention, compiled
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate
from tailor.models.compiled import compilation_errors, compile_layers
from tailor.models.documents import TokenBatch
from tests.helpers.models import tiny_llama


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def load(folder: Path) -> CausalModel:
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(tiny_llama(folder / "model"), dtype=torch.float32)
    attention.set_attention(network)
    return CausalModel(network, layout="stream")


def batch(*lengths: int) -> TokenBatch:
    ids = [np.arange(5, 5 + length) for length in lengths]
    return collate([[Document(one, np.roll(one, -1)) for one in ids]], "stream")


BATCHES = [batch(100), batch(10, 30), batch(60, 3, 1), batch(50, 120), batch(200, 7)]
"""The first one is longer than the hidden size: equal sizes would be one symbol in the first graph."""


def gradients(model: CausalModel, tokens: TokenBatch) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model.next_token_loss(tokens), list(model.parameters())))


def test_other_lengths_compile_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    assert len({tokens.input_ids.shape for tokens in BATCHES}) == 4
    model = load(tmp_path)
    expected = [gradients(model, tokens) for tokens in BATCHES]
    monkeypatch.setattr(compiled, "BACKEND", backend)
    compile_layers(model.base)
    counts = []
    for tokens, plain in zip(BATCHES, expected, strict=True):
        assert all(map(torch.equal, gradients(model, tokens), plain))
        counts.append(len(graphs))
    assert model.base.config.num_hidden_layers > 1
    assert counts == [4] * len(BATCHES), (
        "before and after attention, of the layer and of its attention; for all layers"
    )


def test_a_failed_compilation_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    model = load(tmp_path)
    compile_layers(model.base)
    with (
        pytest.raises(ModelError, match=r"train\.compile.*No working C\+\+ compiler found"),
        compilation_errors(),
    ):
        model.next_token_loss(BATCHES[0])
