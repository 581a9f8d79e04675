"""The losses of routers beside the contrastive loss: those of each text alone, in whatever chunks the texts are embedded."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tailor.data.split import Split
from tailor.methods.gritlm import Gritlm
from tailor.models import router
from tailor.models.causal import CausalModel
from tailor.models.embedding.attention import text_output
from tailor.models.embedding.embedder import embed
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.router import Router
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.mixtures import MIXTURES
from tests.helpers.passes import gradient, relative
from tests.methods.test_gritlm import ENGINES, LORA, batches_of, chunked, load, plain, spec, texts_of

WEIGHTS = (0.5, 0.1)
"""Of the load-balancing loss and the z-loss."""
ALL = 99
"""A chunk size that no batch reaches."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_grit_store(tmp_path_factory.mktemp("tokens"), queries=16, examples=12).split("train")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    base = MIXTURES["mixtral"].make(tmp_path_factory.mktemp("model"))
    made = load(base, adapter={**LORA, "experts": True, "router": True})
    made.router = Router(2, *WEIGHTS)
    return made


def by_hand(model: CausalModel, split: Split, method: Gritlm) -> tuple[float, dict[str, float], torch.Tensor]:
    """The loss of the first batch, the means of the routers' losses, and the gradient, with the formula of transformers on each
    text alone."""
    batch = batches_of(split, first=method.spec.streams.first).batch(0)
    texts = texts_of(split, batch)
    sides = {
        "all": range(batch.texts),
        "queries": range(batch.queries),
        "passages": range(batch.queries, batch.texts),
    }
    trained = sides[method.spec.embedding_gradients]
    vectors = embed(model, method.settings, lay_out_texts(texts, model.layout))
    vectors = torch.stack([row if at in trained else row.detach() for at, row in enumerate(vectors)])
    balance, z_loss = torch.zeros(()), torch.zeros(())
    for at in trained:
        alone = lay_out_texts([texts[at]], model.layout)
        out = text_output(model, alone, attention=method.settings.attention, output_router_logits=True)
        real = [layer[: len(texts[at][0])] for layer in out.router_logits]
        balance = balance + load_balancing_loss_func(tuple(real), 4, 2) / len(trained)
        z_loss = z_loss + torch.stack([layer.logsumexp(-1).square().mean() for layer in real]).mean() / len(
            trained
        )
    loss = plain(vectors, batch) + WEIGHTS[0] * balance + WEIGHTS[1] * z_loss
    loss.backward()
    means = {"embedding_router_loss": balance.item(), "embedding_router_z_loss": z_loss.item()}
    return loss.item(), means, gradient(model)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("side", ["all", "passages"])
def test_chunks_give_the_gradient_of_each_text_alone(
    model: CausalModel, split: Split, engine: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"mode": "embedding", "engine": engine, "embedding_gradients": side}
    method = Gritlm(spec(**keys))
    loss, means, expected = by_hand(model, split, method)
    for size in (1, 2, ALL):
        found, sums = chunked(model, split, {**keys, "kept_chunks": 2}, chunk_size=size)
        metrics = method.metrics(sums, 1)
        assert relative(found, expected) < 1e-5
        assert sums["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["loss"] == metrics["embedding_loss"] == pytest.approx(loss, rel=1e-5)
        assert {name: metrics[name] for name in means} == pytest.approx(means, rel=1e-5)
    of_chunk = partial(_of_rows_together, router._real)
    monkeypatch.setattr(router, "_real", of_chunk)
    other, _ = chunked(model, split, keys, chunk_size=2)
    assert relative(other, expected) > 1e-3, "the control: the loss of the texts of a chunk taken together"


def _of_rows_together(right: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A mistake: all tokens belong to the first document."""
    document, real = right(batch)
    return torch.zeros_like(document), real
