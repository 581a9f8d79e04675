"""The tensors that autograd saves in a decoder layer are those that the forecast counts, term by term."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tailor.models.activations import decoder_layers
from tailor.models.collator import Document, collate
from tailor.plan import ModelFacts, activation_memory
from tailor.plan.activation_memory import OUTPUT, Trained, activations
from tailor.spec.model import Model
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import load_model, tiny_llama

TOKENS, RANK = 512, 4
SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "head_dim": 24}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
ATTENTION = {"rank": RANK, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
VALUES = {"rank": RANK, "target_modules": ["v_proj", "down_proj"]}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": {"rank": RANK}},
    "attention": {"adapter": ATTENTION},
    "values and down": {"adapter": VALUES},
    "norms": {"adapter": {**ATTENTION, "modules_to_save": ["input_layernorm", "post_attention_layernorm"]}},
    "embedding": {"adapter": {**ATTENTION, "modules_to_save": ["embed_tokens"]}},
    "dropout": {"adapter": {"rank": RANK, "dropout": 0.1}},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), **SHAPE, **HEADS)


def saved_bytes(path: Path, kind: str, *, mixed: bool, tiled: bool) -> float:
    """Bytes per token that the second of three layers saves, without weights."""
    model = load_model(
        Model.model_validate({"path": str(path), **KINDS[kind]}),
        precision="bf16" if mixed else "fp32",
        pack=True,
        tiled_mlp=tiled,
    ).train()
    for module in model.modules():
        if hasattr(module, "tile"):
            module.tile = 64  # type: ignore[assignment]
    current: list[int] = [-1]
    for index, layer in enumerate(decoder_layers(model.base)):
        layer.register_forward_pre_hook(lambda *_, index=index: current.__setitem__(0, index))
        layer.register_forward_hook(lambda *_: current.__setitem__(0, -1))
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            known.add(place)
            found[place] = (current[0], tensor.detach())  # held, so that no other tensor gets its place
        return tensor

    ids = np.random.default_rng(0).integers(5, 261, size=TOKENS + 1)
    batch = collate([[Document(ids[:-1], ids[1:])]], "stream")
    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        model.next_token_loss(batch)
    own = [tensor for index, tensor in found.values() if index == 1]
    # Copies of weights do not grow with the tokens; a number per token, or per head, is not counted.
    weights = {shape for weight in model.parameters() for shape in (weight.shape, weight.shape[::-1])}
    grown = [tensor for tensor in own if tensor.shape not in weights]
    sizes = [tensor.untyped_storage().nbytes() for tensor in grown]
    return sum(size for size in sizes if size > TOKENS * 4 * HEADS["num_attention_heads"]) / TOKENS


def counted(path: Path, kind: str, *, mixed: bool, tiled: bool) -> float:
    facts = ModelFacts.from_config(json.loads((path / "config.json").read_text()))
    adapter = Model.model_validate({"path": str(path), **KINDS[kind]}).adapter
    width, wide = 2 if mixed else 4, kind in ("full", "embedding")
    trained = Trained(adapter, residual=4 if wide or not mixed else 2, width=width, mask=width)
    # Of three layers, and of the one of them that is not checkpointed.
    three, one = (activations(facts, trained, 1.0, every=n, tiled=tiled, parts=1).kept for n in (0, 2))
    return (three - one) / 2


@pytest.mark.parametrize(
    ("mixed", "tiled"), [(False, False), (True, True), (True, False)], ids=["fp32", "tiled", "bf16"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_saved_tensor_is_counted(path: Path, kind: str, mixed: bool, tiled: bool) -> None:
    found = saved_bytes(path, kind, mixed=mixed, tiled=tiled)
    assert counted(path, kind, mixed=mixed, tiled=tiled) == pytest.approx(found, rel=0.05)


EXPERTS: dict[str, dict[str, Any]] = {
    "full": {},
    "attention": {"adapter": ATTENTION},
    "experts": {"adapter": {"rank": RANK, "experts": True}},
}


@pytest.mark.parametrize("mixed", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("full", marks=pytest.mark.soak),
        pytest.param("attention", marks=pytest.mark.soak),
        "experts",
    ],
)
def test_what_routed_experts_save_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mixed: bool
) -> None:
    path = MIXTURES["mixtral"].make(tmp_path, **{**SHAPE, **HEADS, "intermediate_size": 96})
    monkeypatch.setitem(KINDS, kind, EXPERTS[kind])
    found = saved_bytes(path, kind, mixed=mixed, tiled=False)
    assert counted(path, kind, mixed=mixed, tiled=False) == pytest.approx(found, rel=0.05)
    monkeypatch.setattr(
        activation_memory, "_experts", lambda facts, trained: 3.0 * trained.width * facts.intermediate
    )
    assert counted(path, kind, mixed=mixed, tiled=False) < 0.8 * found, "as if a token had one expert"


def test_control_a_term_less_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the copy of attention's output for the output projection."""
    found = saved_bytes(path, "attention", mixed=True, tiled=True)
    inputs = Trained.inputs
    monkeypatch.setattr(
        Trained, "inputs", lambda self, names: 0.0 if names == OUTPUT else inputs(self, names)
    )
    assert counted(path, "attention", mixed=True, tiled=True) < 0.93 * found
