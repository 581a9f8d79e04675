"""The losses of routers in the loop: weighted as the recipe says, and one curve however a batch is split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.models.collator import Collator
from tailor.models.router import Router
from tailor.plan import Plan
from tailor.spec.model import Model
from tailor.train import loop
from tests.helpers.embedding_stores import make_grit_store
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.preference_stores import pairs, rated, write_groups
from tests.helpers.stores import make_store

WEIGHTS = {"router_aux_loss": 0.5, "router_z_loss": 0.1}
GRITLM = {"embedding_batch_size": 6, "generative_batch_size": 3, "temperature": 0.1, "projection": 16}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo"},
    "kto": {"name": "kto"},
    "rerank": {"name": "rerank", "group_size": 3, "loss": "pointwise"},
    "embedding": {"name": "gritlm", "mode": "embedding", **GRITLM},
    "unified": {"name": "gritlm", **GRITLM},
}
FIGURES = ("router_loss", "router_z_loss")
Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("router-losses")
    stores = {
        "sft": make_store(folder / "sft", [23, 17, 31, 9, 40, 12, 22, 35] * 3),
        "dpo": write_groups(folder / "dpo", pairs(24)),
        "kto": write_groups(folder / "kto", rated(24)),
        "rerank": make_grit_store(folder / "rerank", queries=24),
        "embedding": make_grit_store(folder / "embedding", queries=24),
        "unified": make_grit_store(folder / "unified", queries=24, examples=12),
    }
    return MIXTURES["qwen2_moe"].make(folder / "base"), stores


def planned(
    made: Made, run: Path, method: str, weights: dict[str, float] = WEIGHTS, size: int = 1, **sections: Any
) -> Plan:
    """size: rows, or texts to embed, of one forward pass."""
    base, stores = made
    adapter = {**LORA, "experts": True, "router": True}
    keys, train = METHODS[method], {"steps": 3, "batch_size": 8, "micro_batch_size": size}
    if keys["name"] == "gritlm":
        keys, train = {**keys, "chunk_size": size}, {**train, "batch_size": None}
    model = {"adapter": adapter, **weights}
    return make_plan(base, stores[method], run, method=keys, model=model, train=train, **sections)


def curve(host: PlainHost, plan: Plan) -> list[list[float]]:
    """Of each step the loss and the two losses of the routers, each the sum over the method's parts."""
    loop.run(plan, host)
    records = host.of("train")
    host.records.clear()
    return [[record["loss"], *(part(record, name) for name in FIGURES)] for record in records]


def part(record: dict[str, Any], name: str) -> float:
    return float(sum(record.get(each, 0.0) for each in (name, f"embedding_{name}")))


@pytest.mark.parametrize("method", METHODS)
def test_the_curve_does_not_depend_on_the_micro_batch(made: Made, tmp_path: Path, method: str) -> None:
    curves = [curve(PlainHost(), planned(made, tmp_path / str(size), method, size=size)) for size in (1, 4)]
    for left, right in zip(*curves, strict=True):
        assert left == pytest.approx(right, abs=2e-5)
    without = curve(PlainHost(), planned(made, tmp_path / "without", method, {}))
    loss, balance, z_loss = curves[0][0]
    parts = 2 if method == "unified" else 1
    assert 2 <= balance / parts < 4, "2 of 4 experts for a token: 2 at the best"
    assert z_loss > 0
    assert loss == pytest.approx(without[0][0] + 0.5 * balance + 0.1 * z_loss, abs=1e-5)
    assert without[0][1:] == [0.0, 0.0]


@pytest.mark.soak
@pytest.mark.parametrize("method", [*METHODS, "sft, sequences split", "unified, fsdp", "rerank, fsdp"])
def test_one_process_equals_two(made: Made, tmp_path: Path, method: str) -> None:
    method, _, how = method.partition(", ")
    scale = {"sequences split": {"sequence_parallel": 2}, "fsdp": {"strategy": "fsdp"}}.get(how, {})
    alone = curve(PlainHost(), planned(made, tmp_path / "one", method))
    two = run_distributed(
        curve, planned(made, tmp_path / "two", method, scale={"workers": 2, **scale}), world=2
    )
    for left, right in zip(alone, two[0], strict=True):
        assert left == pytest.approx(right, abs=2e-5)


def test_the_z_loss_is_taken_over_real_tokens(made: Made) -> None:
    base, stores = made
    model = load_model(Model(path=str(base), attention="sdpa"))
    split = stores["sft"].split("train")
    model.router = Router(2, 0.0, 1.0)
    alone = [
        float(model.training_loss(Collator(split, "rows")([(row,)]))[1]["router_z_loss"]) for row in (1, 3)
    ]
    batch = Collator(split, "rows")([(1,), (3,)])  # the second row is padded
    assert bool((batch.token_document < 0).any())
    together = float(model.training_loss(batch)[1]["router_z_loss"])
    assert together == pytest.approx(sum(alone), rel=1e-5)
    out = model._outputs(Collator(split, "rows")([(1,)]), output_router_logits=True)
    by_hand = torch.stack([layer.logsumexp(-1).square().mean() for layer in out.router_logits]).mean()
    assert alone[0] / int(split.example(1).spans[0, 1] - split.example(1).spans[0, 0]) == pytest.approx(
        float(by_hand.detach()), rel=1e-5
    )


def test_a_model_without_such_losses_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    dense = AutoConfig.from_pretrained(tiny_llama(tmp_path))
    spec = Model(path="a", router_z_loss=0.1)
    with pytest.raises(ModelError, match=r"model.router_z_loss: the model \(llama\) has no routers"):
        Router.of(dense, spec)
    glm = AutoConfig.for_model("glm4_moe")
    assert Router.of(glm, spec) == Router(8, 0.0, 0.1)
    with pytest.raises(ModelError, match=r"\(glm4_moe\) balances its experts without such a loss"):
        Router.of(glm, Model(path="a", router_aux_loss=0.1))
    mixtral = AutoConfig.for_model("mixtral", output_router_logits=True)
    assert Router.of(mixtral) == Router(2, 0.001)
    assert Router.of(mixtral, by_config=False) is None
    assert Router.of(mixtral, Model(path="a", router_aux_loss=0.0)) is None
    assert Router.of(mixtral, Model(path="a", router_aux_loss=0.2), by_config=False) == Router(2, 0.2)
