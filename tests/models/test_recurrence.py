"""Recurrent layers start each packed document with an empty state: losses and gradients are those of the documents alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.models import probe, recurrence
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import Documents
from tailor.spec.model import Model
from tests.helpers.families import FAMILIES
from tests.helpers.models import load_model
from tests.helpers.stores import make_store

CPU = torch.device("cpu")
LENGTHS = [23, 17, 3, 31, 9, 40]


def load(path: Path, *, pack: bool = True, again: int = 0, **model: Any) -> CausalModel:
    return load_model(
        Model.model_validate({"path": str(path), **model}),
        pack=pack,
        activation_checkpointing=again,
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_store(tmp_path_factory.mktemp("tokens"), LENGTHS).split("train")


def loss(model: CausalModel, split: Any, *rows: tuple[int, ...]) -> torch.Tensor:
    return model.next_token_loss(Collator(split, model.layout)(list(rows)))


def gradients(model: CausalModel) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("key", ["mamba", "jamba", "lfm2", "minimax", "recurrent_gemma"])
def test_a_pack_has_the_gradients_of_its_documents(tmp_path: Path, split: Any, key: str) -> None:
    model = load(FAMILIES[key].make(tmp_path))
    loss(model, split, tuple(range(len(split)))).backward()
    packed = gradients(model)
    for index in range(len(split)):
        loss(model, split, (index,)).backward()
    alone = gradients(model)
    assert (packed - alone).norm() / alone.norm() < 1e-5


def test_control_the_state_of_one_document_reaches_the_next(tmp_path: Path, split: Any) -> None:
    model = load(FAMILIES["mamba"].make(tmp_path))
    whole = loss(model, split, tuple(range(len(split))))
    for module in model.base.modules():
        vars(module).pop("forward", None)
    assert (loss(model, split, tuple(range(len(split)))) - whole).abs() > 0.1
    assert not probe.packs_in_isolation(model, CPU, torch.float32)


def test_checkpointed_layers_find_their_own_documents(tmp_path: Path, split: Any) -> None:
    """Two micro-batches before their backward passes, as in dpo and GradCache."""
    path = FAMILIES["mamba"].make(tmp_path)
    found = []
    for again in (0, 1):
        model = load(path, again=again).train()
        first, second = loss(model, split, (0, 1, 2)), loss(model, split, (3, 4), (5,))
        first.backward()
        second.backward()
        found.append(gradients(model))
    assert torch.equal(*found)


def test_control_of_the_checkpointed_layers(
    tmp_path: Path, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "_within", lambda documents: recurrence.nullcontext())
    model = load(FAMILIES["mamba"].make(tmp_path), again=1).train()
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss(model, split, (0, 1, 2)).backward()


def test_documents_of_similar_length_share_a_call() -> None:
    lengths = [5, 1000, 6, 7, 900, 1, 4]
    rows = recurrence._Rows.of(Documents.packed(lengths, CPU))
    assert len(rows.groups) == 3
    assert sum(group.numel() for group in rows.groups) < 2 * sum(lengths)
    flat = torch.cat([group.flatten() for group in rows.groups])
    assert torch.equal(flat[rows.inverse], torch.arange(sum(lengths))), "every token is where it was"


def test_without_packing_nothing_changes(tmp_path: Path) -> None:
    model = load(FAMILIES["mamba"].make(tmp_path), pack=False)
    assert model.layout == "rows"
    assert not recurrence.is_isolated(model.base)


def test_a_model_whose_layers_keep_their_state_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its recurrent layers carry their state over") as error:
        load(FAMILIES["rwkv"].make(tmp_path))
    assert error.value.hint == "set data.pack: false"


@pytest.mark.parametrize("mode", [{}, {"quantize": {"type": "nf4"}}], ids=["plain", "nf4"])
def test_a_deep_rwkv_with_an_adapter_computes_the_same_in_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any]
) -> None:
    base = FAMILIES["rwkv"].make(tmp_path, num_hidden_layers=8)

    def in_training_and_inference() -> tuple[torch.Tensor, torch.Tensor]:
        model = load(base, pack=False, adapter={"rank": 4}, **mode)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            training, inference = (model.train(on).network(input_ids=ids).logits for on in (True, False))
        return training, inference

    training, inference = in_training_and_inference()
    assert torch.equal(training, inference)
    if not mode:  # transformers cannot scale quantized weights
        monkeypatch.setattr(recurrence, "keep_scale", lambda config: None)
        training, inference = in_training_and_inference()
        assert not torch.allclose(training, inference, atol=0.01), (
            "the control: as transformers scales layers"
        )
