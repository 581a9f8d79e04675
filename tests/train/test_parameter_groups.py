"""Groups of weights with a learning rate of their own, and which weights Muon and schedule-free AdamW train how."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models.causal import CausalModel
from tailor.spec.optim import Optim
from tailor.train.optimizer import (
    RATIO,
    build_optimizer,
    optimizer_order,
    parameter_groups,
    set_learning_rate,
)
from tailor.train.schedule_free import PROGRESS
from tests.helpers.families import FAMILIES
from tests.helpers.family import COMMON, DENSE


def spec(**values: Any) -> Optim:
    return Optim.model_validate({"learning_rate": 1e-2, **values})


def tiny(kind: str = "llama", adapter: dict[str, Any] | None = None, **sizes: Any) -> CausalModel:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**COMMON, **sizes}))
    if adapter is not None:
        network = get_peft_model(
            network, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **adapter)
        )
    return CausalModel(network, layout=None)  # type: ignore[arg-type]  # it lays out no batch here


def ratios_of(model: CausalModel, **ratios: float) -> dict[str, float]:
    """Name of a trained weight -> its ratio."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(spec(learning_rate_ratios=ratios), model)
    return {names[id(p)]: group[RATIO] for group in groups for p in group["params"]}


UNTIED = {**DENSE, "tie_word_embeddings": False}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("adapter", "decay"), [({}, 0.0), ({}, 0.1), ({"use_dora": True}, 0.1)], ids=["plain", "decay", "dora"]
)
def test_lora_plus_is_that_of_peft(adapter: dict[str, Any], decay: float) -> None:
    from peft.optimizers import create_loraplus_optimizer

    model = tiny(adapter=adapter, **DENSE)
    theirs = create_loraplus_optimizer(
        model.network, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=decay
    )
    ours = build_optimizer(spec(weight_decay=decay, learning_rate_ratios={"lora_b": 16}), model)
    set_learning_rate(ours, 1e-2)

    def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
        return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}

    assert rates(ours) == rates(theirs)
    assert set(rates(ours).values()) == {1e-2, 1.6e-1}
    assert set(rates(build_optimizer(spec(), model)).values()) == {1e-2}, "control"


@pytest.mark.parametrize(
    ("kind", "sizes", "embeddings", "head"),
    [
        ("llama", UNTIED, {"network.model.embed_tokens.weight"}, {"network.lm_head.weight"}),
        ("llama", {**DENSE, "tie_word_embeddings": True}, {"network.model.embed_tokens.weight"}, set()),
        ("gpt2", GPT2, {"network.transformer.wte.weight", "network.transformer.wpe.weight"}, set()),
    ],
    ids=["untied", "tied", "positions"],
)
def test_embeddings_and_head(kind: str, sizes: dict[str, Any], embeddings: set[str], head: set[str]) -> None:
    model = tiny(kind, **sizes)
    ratios = {"embeddings": 0.1, "head": 3.0} if head else {"embeddings": 0.1}
    found = ratios_of(model, **ratios)
    assert {name for name, ratio in found.items() if ratio == 0.1} == embeddings
    assert {name for name, ratio in found.items() if ratio == 3.0} == head
    assert len(found) == len(list(model.parameters()))


def test_modules_that_are_saved_with_an_adapter_have_theirs() -> None:
    model = tiny(adapter={"modules_to_save": ["embed_tokens", "lm_head"]}, **UNTIED)
    found = ratios_of(model, lora_b=16, embeddings=0.5, head=2)
    kinds = {ratio: [name for name in found if found[name] == ratio] for ratio in (0.5, 2.0)}
    assert [len(names) for names in kinds.values()] == [1, 1]
    assert "embed_tokens" in kinds[0.5][0]
    assert "lm_head" in kinds[2.0][0]


@pytest.mark.parametrize(
    ("ratio", "adapter", "sizes"),
    [
        ("head", None, {"tie_word_embeddings": True}),
        ("head", {"modules_to_save": ["embed_tokens"]}, {"tie_word_embeddings": False}),
        ("embeddings", {}, {}),
        ("lora_b", None, {}),
    ],
)
def test_a_ratio_without_weights_is_an_error(
    ratio: str, adapter: dict[str, Any] | None, sizes: dict[str, Any]
) -> None:
    model = tiny(adapter=adapter, **{**DENSE, **sizes})
    with pytest.raises(ModelError, match=rf"optim\.learning_rate_ratios\.{ratio}: .* no such weights"):
        build_optimizer(spec(learning_rate_ratios={ratio: 2.0}), model)
    build_optimizer(spec(learning_rate_ratios={ratio: 1.0}), model)  # control: 1 needs no weights


def test_a_ratio_scales_the_updates_of_its_weights_alone() -> None:
    """By a numpy formula: SGD subtracts rate × ratio × gradient."""
    model = nn.ModuleDict({"table": nn.Embedding(4, 3), "linear": nn.Linear(3, 2)})
    optimizer = build_optimizer(spec(optimizer="sgd", learning_rate_ratios={"embeddings": 5}), model)
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()
    moved = {name: before[name] - p.detach().numpy() for name, p in model.named_parameters()}
    assert {name: float(np.unique(values.round(6))[0]) for name, values in moved.items()} == pytest.approx(
        {"table.weight": 5e-3, "linear.weight": 1e-3, "linear.bias": 1e-3}
    )


def test_without_ratios_the_groups_are_those_of_before() -> None:
    model = tiny("gpt2", **GPT2)
    groups = parameter_groups(spec(weight_decay=0.1), model)
    assert [(group["weight_decay"], group[RATIO]) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]
    decays = {id(p) for p in groups[0]["params"]}
    named = [(name, id(p) in decays) for name, p in model.named_parameters()]
    order = optimizer_order(build_optimizer(spec(weight_decay=0.1), model), model)
    assert order == [name for name, decay in sorted(named, key=lambda one: not one[1])]


def filled(model: nn.Module, seed: int = 0) -> None:
    """Give every weight a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


MATRICES: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "llama": (UNTIED, lambda name: "_proj" in name),
    "gpt2": (GPT2, lambda name: "c_" in name and name.endswith("weight")),
    # Experts are one tensor of three dimensions, which Muon does not take.
    "mixtral": (
        {**FAMILIES["mixtral"].sizes},
        lambda name: ("_proj" in name and "experts" not in name) or "gate.w" in name,
    ),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_muon_trains_the_matrices_of_hidden_layers_and_adamw_the_rest(kind: str) -> None:
    """The result is that of torch's Muon and AdamW, each on its own weights."""
    sizes, is_matrix = MATRICES[kind]
    ours, theirs = tiny(kind, **sizes), tiny(kind, **sizes)
    named = list(theirs.named_parameters())
    matrices = [p for name, p in named if is_matrix(name)]
    others = [p for name, p in named if not is_matrix(name)]
    assert matrices
    assert others
    muon = torch.optim.Muon(
        matrices, lr=1e-2, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=1e-2, weight_decay=0.0, fused=True)
    both = build_optimizer(spec(optimizer="muon"), ours)
    for step in range(3):
        filled(ours, step)
        filled(theirs, step)
        for optimizer in (muon, adamw, both):
            optimizer.step()
    for (name, found), (_, expected) in zip(ours.named_parameters(), named, strict=True):
        assert torch.equal(found, expected), name


def test_an_update_of_muon_is_orthogonal_and_as_large_as_one_of_adamw() -> None:
    """By numpy's singular values: all of a matrix's update are about rate × 0.2 × sqrt(its larger dimension)."""
    model = nn.Linear(48, 32, bias=False)
    before = model.weight.detach().clone()
    filled(model)
    build_optimizer(spec(optimizer="muon"), model).step()
    update = (before - model.weight.detach()).numpy()
    values = np.linalg.svd(update, compute_uv=False) / (1e-2 * 0.2 * math.sqrt(48))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert 0.75 < np.sqrt((update**2).mean()) / (1e-2 * 0.2) < 1.25
    gradient = np.linalg.svd(model.weight.grad.numpy(), compute_uv=False)
    assert gradient.max() / gradient.min() > 4, "control: the gradient is not orthogonal"


def test_muon_without_other_weights_and_without_matrices() -> None:
    for model in (nn.Linear(8, 4, bias=False), nn.LayerNorm(8)):
        optimizer = build_optimizer(spec(optimizer="muon"), model)
        before = [p.detach().clone() for p in model.parameters()]
        filled(model)
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_muon_trains_lora() -> None:
    model = tiny(adapter={"modules_to_save": ["embed_tokens"]}, **UNTIED)
    optimizer = build_optimizer(spec(optimizer="muon"), model)
    muon = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name}
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for group in optimizer.param_groups if "ns_steps" in group for p in group["params"]}
    assert found == muon


def test_schedule_free_is_the_recursion_of_its_paper() -> None:
    """Defazio et al. 2024, Algorithm 1, in numpy: z moves, x averages it, and gradients are taken at y between both."""
    pytest.importorskip("schedulefree")
    rates, decay, beta1, beta2, eps = [1e-2, 2e-2, 3e-2, 3e-2, 3e-2, 3e-2], 0.1, 0.9, 0.999, 1e-8
    model = nn.Linear(5, 4, bias=False)
    optimizer: Any = build_optimizer(spec(optimizer="schedule_free", weight_decay=decay), model)
    x = z = y = model.weight.detach().numpy().astype(np.float64)
    moment, total, largest = np.zeros_like(x), 0.0, 0.0
    for step, rate in enumerate(rates):
        filled(model, step)
        gradient = model.weight.grad.numpy().astype(np.float64)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        moment = beta2 * moment + (1 - beta2) * gradient**2
        scaled = gradient / (np.sqrt(moment / (1 - beta2 ** (step + 1))) + eps)
        z = z - rate * (scaled + decay * y)
        largest = max(largest, rate)
        total += largest**2
        share = largest**2 / total
        x = (1 - share) * x + share * z
        y = (1 - beta1) * z + beta1 * x
    trained = model.weight.detach().clone()
    assert trained.numpy() == pytest.approx(y, abs=1e-6)
    with optimizer.averaged():
        assert model.weight.detach().numpy() == pytest.approx(x, abs=1e-6)
        assert not np.allclose(x, y, atol=1e-4), "control: the two differ"
    assert torch.equal(model.weight, trained), "an evaluation changes no bit"


def test_a_saved_schedule_free_state_has_all_of_it() -> None:
    pytest.importorskip("schedulefree")
    model = nn.Linear(5, 4)
    one: Any = build_optimizer(spec(optimizer="schedule_free"), model)
    filled(model)
    one.step()
    saved = copy.deepcopy(one.state_dict())  # as a file: it shares no tensor
    y = [p.detach().clone() for p in model.parameters()]
    with one.averaged(), torch.no_grad():
        averaged = nn.Linear(5, 4)
        for to, source in zip(averaged.parameters(), model.parameters(), strict=True):
            to.copy_(source)
    other: Any = build_optimizer(spec(optimizer="schedule_free"), averaged)
    # As a checkpoint is loaded: the groups are those of the recipe.
    other.load_state_dict({**other.state_dict(), "state": saved["state"]})
    assert all(torch.equal(a, b) for a, b in zip(y, averaged.parameters(), strict=True))
    for mine, theirs in zip(one.param_groups, other.param_groups, strict=True):
        assert {key: mine[key] for key in PROGRESS} == {key: theirs[key] for key in PROGRESS}
    filled(averaged, 1)
    filled(model, 1)
    one.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), averaged.parameters(), strict=True))
