"""The balance of experts in the loss: transformers' formula, document by document, however a batch is cut or packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.models import router
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import TokenBatch
from tailor.models.router import Router
from tailor.models.sequence import SequenceGroup
from tailor.spec.model import Model
from tailor.train import loop
from tests.helpers.families import FAMILIES
from tests.helpers.hosts import PlainHost
from tests.helpers.models import load_model
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

LENGTHS = [23, 17, 31, 9, 40, 12, 22, 35]
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "jamba")
ASKED = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
LOSSES = ("router_loss", "router_z_loss")


def load(path: Path, *, pack: bool = False, again: bool = False, **options: Any) -> CausalModel:
    return load_model(
        Model(path=str(path), **options),
        pack=pack,
        activation_checkpointing=again,
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_store(tmp_path_factory.mktemp("tokens"), LENGTHS).split("train")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["mixtral"].make(tmp_path_factory.mktemp("mixtral"), **ASKED)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_document_has_the_loss_of_transformers(tmp_path: Path, split: Any, name: str) -> None:
    model = load(FAMILIES[name].make(tmp_path, **ASKED))
    for row in ((0,), (4,)):
        batch = Collator(split, model.layout)([row])
        loss, further = model.training_loss(batch)
        loss = loss.detach()
        ids = torch.as_tensor(split.example(row[0]).input_ids.astype("int64"))[None]
        chosen = model.base.config._attn_implementation
        model.base.set_attn_implementation("sdpa")
        theirs = model.base(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False)
        model.base.set_attn_implementation(chosen)
        supervised = len(batch.targets)
        expected = float(theirs.aux_loss.detach())
        assert float(further["router_loss"]) / supervised == pytest.approx(expected, rel=1e-5)
        alone = float(model.next_token_loss(batch).detach())
        assert float(loss) == pytest.approx(alone + 0.5 * supervised * expected, rel=1e-5)
        assert float(loss) - alone > 1, "the control: the balance counts"


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_documents_have_their_own_losses_however_they_are_packed(
    mixtral: Path, split: Any, attention: str
) -> None:
    model = load(mixtral, pack=True, attention=attention)
    model.router = routing = Router(2, 0.5, 0.1)

    def found(rows: list[tuple[int, ...]]) -> dict[str, float]:
        batch = Collator(split, model.layout)(rows)
        of_tokens = model.training_loss(batch)[1]
        logits = model._outputs(batch, output_router_logits=True).router_logits
        of_documents = routing.losses(logits, batch, torch.full(batch.supervised.shape, 0.5)).statistics
        return {
            **{name: float(of_tokens[name]) for name in LOSSES},
            **{f"documents {name}": float(of_documents[name]) for name in LOSSES},
        }

    one = [found([(index,)]) for index in range(7)]
    expected = {name: sum(each[name] for each in one) for name in one[0]}
    for rows in (
        [(0, 1), (2,), (3, 5, 6), (4,)],
        [(0, 1, 2, 3), (4, 5, 6)],
        [(index,) for index in range(7)],
    ):
        assert found(rows) == pytest.approx(expected, rel=1e-5)
    # The control: taken over a packed row at once the balance is another number.
    batch = Collator(split, model.layout)([(0, 1, 2, 3), (4, 5, 6)])
    of_row = (batch.token_document > 3).long().masked_fill(batch.token_document < 0, -1)
    logits = model._outputs(batch, output_router_logits=True).router_logits
    supervised = torch.stack([batch.supervised[:4].sum(), batch.supervised[4:].sum()])
    mixed = routing.loss(logits, replace(batch, token_document=of_row), supervised)
    assert abs(float(mixed.detach()) - expected["router_loss"]) > 1e-2 * expected["router_loss"]


def test_gradients_are_the_same_with_activation_checkpointing(mixtral: Path, split: Any) -> None:
    found = []
    for again in (False, True):
        model = load(mixtral, again=again).train()
        model.training_loss(Collator(split, model.layout)([(0,), (1,)]))[0].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any("gate.weight" in name for name in found[0])
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


@pytest.mark.parametrize("adapter", [None, LORA])
def test_the_curve_does_not_depend_on_the_micro_batch(
    mixtral: Path, tmp_path: Path, adapter: dict[str, Any] | None
) -> None:
    tokens = make_store(tmp_path / "tokens", LENGTHS * 4)
    curves = {}
    for size in (1, 2, 4):
        host = PlainHost()
        sections = {"train": {"micro_batch_size": size, "steps": 3}, "model": {"adapter": adapter}}
        loop.run(make_plan(mixtral, tokens, tmp_path / str(size), **sections), host)
        curves[size] = [(record["loss"], record["router_loss"]) for record in host.of("train")]
    for size in (2, 4):
        for pair, expected in zip(curves[size], curves[1], strict=True):
            assert pair == pytest.approx(expected, abs=1e-5)
    assert all(2 <= balance < 8 for _, balance in curves[1]), "2 of 4 experts for a token: 2 at the best"


def test_it_is_the_configuration_that_asks(tmp_path: Path, split: Any) -> None:
    from transformers import MixtralConfig

    assert Router.of(MixtralConfig(router_aux_loss_coef=0.01)) is None
    assert Router.of(MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.0)) is None
    assert Router.of(MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.01)) == Router(2, 0.01)
    model = load(FAMILIES["mixtral"].make(tmp_path))
    batch = Collator(split, model.layout)([(0,)])
    loss, further = model.training_loss(batch)
    assert further == {}
    assert torch.equal(loss, model.next_token_loss(batch))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "jamba"])
def test_a_token_uses_its_own_experts_only(tmp_path: Path, name: str) -> None:
    """Shared experts, and layers without experts, count in full."""
    model = load(FAMILIES[name].make(tmp_path))
    config = model.base.config
    experts = int(getattr(config, "num_local_experts", None) or config.num_experts)
    sizes = {key: weight.numel() for key, weight in model.base.named_parameters()}
    routed = sum(size for key, size in sizes.items() if "experts" in key and "shared" not in key)
    assert routed > 0
    found = model.weights()
    assert found.total == sum(sizes.values())
    assert found.active == found.total - routed * (experts - config.num_experts_per_tok) // experts


def test_every_weight_of_a_dense_model_is_used(tmp_path: Path) -> None:
    found = load(FAMILIES["llama"].make(tmp_path)).weights()
    assert found.active == found.total


def test_parts_of_documents_on_several_workers_sum_to_the_whole(
    split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers with half of a stream each. Counts are exchanged: the first round records them, the second sums them."""
    batch = Collator(split, "stream")([(0, 1, 2, 3), (4, 5, 6)])
    routing, half = Router(2, 0.5, 0.1), batch.input_ids.shape[1] // 2
    weights = torch.randn(2, 2 * half, 4, generator=torch.Generator().manual_seed(0))  # [layers, T, experts]

    def found(part: TokenBatch, start: int, stop: int) -> tuple[float, torch.Tensor]:
        logits = weights[:, start:stop].clone().requires_grad_()
        loss = routing.losses(list(logits), part, part.supervised).weighted
        return loss.item(), torch.autograd.grad(loss, logits)[0]

    expected, gradient = found(batch, 0, 2 * half)
    counts: list[list[torch.Tensor]] = []
    parts = [(batch.cut(SequenceGroup(rank, 2, None)), rank * half, (rank + 1) * half) for rank in (0, 1)]
    monkeypatch.setattr(router.dist, "all_reduce", lambda own, group: counts[-1].append(own.clone()))
    without = 0.0
    for part in parts:
        counts.append([])
        without += found(*part)[0]
    summed = [torch.stack(pair).sum(0) for pair in zip(*counts, strict=True)]
    assert without != pytest.approx(expected, rel=1e-2), "the control: each worker with its own counts"
    results = []
    for part in parts:
        order = iter(summed)
        monkeypatch.setattr(router.dist, "all_reduce", lambda own, group: own.copy_(next(order)))  # noqa: B023
        results.append(found(*part))
    assert sum(loss for loss, _ in results) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(torch.cat([each for _, each in results], dim=1), gradient)
