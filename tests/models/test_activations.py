"""What is kept for the backward pass changes memory, and not one bit of the gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tailor.errors import ModelError
from tailor.models import activations
from tailor.models.causal import CausalModel
from tailor.models.collator import Document, collate
from tailor.models.documents import TokenBatch
from tailor.models.loss import summed_cross_entropy
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES
from tests.helpers.live_bytes import measured
from tests.helpers.models import load_model, tiny_llama

HIDDEN, LAYERS, TOKENS, TILE = 64, 4, 320, 64
ADAPTER: dict[str, Any] = {"rank": 4, "alpha": 8}


def load(
    path: Path, *, every: int = 0, adapter: bool = False, pack: bool = True, **options: bool
) -> CausalModel:
    model = load_model(
        Model.model_validate({"path": str(path), "adapter": ADAPTER if adapter else None}),
        pack=pack,
        activation_checkpointing=every,
        **options,
    ).train()
    for module in model.modules():
        if hasattr(module, "tile"):
            module.tile = TILE  # type: ignore[assignment]
    return model


def batch(tokens: int = TOKENS) -> TokenBatch:
    ids = np.random.default_rng(0).integers(5, 261, size=tokens + 1)
    cut = tokens // 3
    return collate([[Document(ids[:cut], ids[1 : cut + 1]), Document(ids[cut:-1], ids[cut + 1 :])]], "stream")


def gradients(model: CausalModel) -> torch.Tensor:
    model.zero_grad()
    model.next_token_loss(batch()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), num_hidden_layers=LAYERS)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("every", "offloading"), [(1, False), (2, False), (3, True), (1, True)])
def test_gradients_are_the_same_to_the_bit(path: Path, adapter: bool, every: int, offloading: bool) -> None:
    kept = gradients(load(path, adapter=adapter))
    less = gradients(load(path, adapter=adapter, every=every, activation_offloading=offloading))
    assert torch.equal(less, kept)


def test_control_what_comes_back_from_host_memory_is_what_is_computed_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_to_host", lambda tensor: tensor.detach() * 1.01)
    other = gradients(load(path, every=1, activation_offloading=True))
    assert distance(other, gradients(load(path))) > 1e-3


@pytest.mark.parametrize(("every", "again"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (9, [0])])
def test_every_nth_layer_is_computed_again(path: Path, every: int, again: list[int]) -> None:
    layers = activations.decoder_layers(load(path, every=every).base)
    assert [at for at, layer in enumerate(layers) if layer.gradient_checkpointing] == again


def test_memory_falls_by_the_offloaded_tensors(path: Path) -> None:
    def step(**options: Any) -> Any:
        model = load(path, adapter=True, **options)
        return measured(lambda: model.next_token_loss(batch()).backward())

    kept, third, all_again = (step(every=every) for every in (0, 3, 1))
    assert kept.peak > third.peak > all_again.peak
    away = step(every=1, activation_offloading=True)
    tokens = len(batch().input_ids[0])
    assert away.host == 4 * HIDDEN * LAYERS * tokens
    # All but the one that is being computed with.
    assert all_again.peak - away.peak >= 4 * HIDDEN * (LAYERS - 2) * tokens
    assert all_again.host == 0


@pytest.mark.parametrize("every", [0, 1])
def test_a_tiled_feed_forward_block_equals_the_untiled_one(path: Path, every: int) -> None:
    model, whole = load(path, every=every, tiled_mlp=True), load(path, every=every)
    losses = [one.next_token_loss(batch()).item() for one in (model, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert distance(gradients(model), gradients(whole)) <= 1e-6
    with torch.no_grad():
        assert distance(model.eval().hidden(batch()), whole.eval().hidden(batch())) <= 1e-6


def test_control_a_tile_without_a_gradient_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, model = gradients(load(path)), load(path, tiled_mlp=True)
    tiled = activations.checkpoint
    calls = iter(range(10**6))

    def forgetful(*arguments: Any, **options: Any) -> Any:
        out = tiled(*arguments, **options)
        return out.detach() if next(calls) == 1 else out

    monkeypatch.setattr(activations, "checkpoint", forgetful)
    assert distance(gradients(model), whole) > 1e-3


def test_the_middle_of_a_tiled_block_takes_constant_memory(tmp_path: Path) -> None:
    """A block sixteen times as wide as the rest: whole, its middle costs most of all; tiled, next to nothing."""
    wide = tiny_llama(tmp_path, intermediate_size=1024, num_hidden_layers=1)

    def slope(**options: bool) -> float:
        model = load(wide, every=1, adapter=True, **options)
        peaks = [measured(lambda n=n: model.next_token_loss(batch(n)).backward()).peak for n in (640, 1280)]
        return (peaks[1] - peaks[0]) / 640

    whole, tiled = slope(), slope(tiled_mlp=True)
    assert whole > 16 * 1024
    assert tiled < 5 * 1024


def test_a_block_that_mixes_tokens_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) + x.roll(1, dims=1))
    with pytest.raises(ModelError, match=r"train\.tiled_mlp: LlamaForCausalLM has no feed-forward block"):
        load(path, tiled_mlp=True, pack=False)


def test_a_block_that_mixes_tokens_by_design_is_rejected(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    FAMILIES["mixtral"].make(tmp_path)
    with pytest.raises(ModelError, match=r"train\.tiled_mlp: MixtralForCausalLM has no feed-forward block"):
        activations.tile_feed_forward(AutoModelForCausalLM.from_pretrained(tmp_path))


VOCABULARY, WIDTH = 32768, 64


def loss_bytes(tokens: int, tile: int | None) -> int:
    """At the peak of loss and gradients, beside the hidden states and the head. tile: tokens, None for all at once."""
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    targets = torch.randint(0, VOCABULARY, (tokens,))

    def step() -> None:
        if tile is None:
            functional.cross_entropy(head(hidden).float(), targets, reduction="sum").backward()
        else:
            summed_cross_entropy(hidden, head, targets, tile_bytes=4 * VOCABULARY * tile).backward()

    return measured(step).peak


def test_memory_of_the_loss_is_flat() -> None:
    """A vocabulary of 32 768: 12 bytes per token and entry, or 3 × 32 MiB for any length in tiles of 256 tokens."""
    short, long = loss_bytes(512, 256), loss_bytes(2048, 256)
    assert short < 106e6
    # Beside the tile, the gradient of the hidden states: twice, as it is scaled.
    assert long - short <= 2 * 4 * WIDTH * (2048 - 512)
    plain = loss_bytes(512, None)
    assert plain >= 2 * 4 * VOCABULARY * 512, "the control"
