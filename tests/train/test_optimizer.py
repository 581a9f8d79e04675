"""Optimizers move weights, and their groups have the right weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from torch import nn

from tailor.spec.optim import Optim
from tailor.train import checkpoint
from tailor.train.optimizer import (
    build_optimizer,
    decayed,
    load_state,
    numbering,
    optimizer_order,
)
from tests.helpers.families import FAMILIES
from tests.helpers.family import COMMON, DENSE

OPTIMIZERS = get_args(Optim.model_fields["optimizer"].annotation)


def spec(**values: object) -> Optim:
    return Optim.model_validate({"learning_rate": 1e-2, **values})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    if name == "schedule_free":
        pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    model, inputs = nn.Linear(128, 64), torch.randn(64, 128)
    optimizer = build_optimizer(spec(optimizer=name), model)
    losses = []
    for _ in range(30):
        loss = model(inputs).square().mean()
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_eight_bit_state_is_eight_bits() -> None:
    model = nn.Linear(128, 128)
    optimizer = build_optimizer(spec(optimizer="adamw_8bit"), model)
    model(torch.randn(2, 128)).sum().backward()
    optimizer.step()
    assert optimizer.state[model.weight]["state1"].dtype == torch.uint8


def test_decay_is_for_matrices_only() -> None:
    groups = build_optimizer(spec(weight_decay=0.1), nn.Linear(4, 4)).param_groups
    assert [(group["weight_decay"], group["params"][0].ndim) for group in groups] == [(0.1, 2), (0.0, 1)]


def test_only_trained_weights_are_given_to_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    groups = build_optimizer(spec(), model).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


GPT_OSS = {"head_dim": 16, "num_local_experts": 4, "sliding_window": 16}
DECAY: dict[str, dict[str, Any]] = {
    "cohere": {**DENSE, "use_qk_norm": True},  # norms of heads, [heads, d]
    "gpt_oss": {**DENSE, **GPT_OSS},  # biases of experts, [experts, out]
    "mamba": {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2},
    "mamba2": FAMILIES["mamba2"].sizes,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "qwen3": {**DENSE, "head_dim": 16},
}
UNDECAYED = {
    "cohere": "model.layers.0.self_attn.q_norm.weight",
    "gpt_oss": "model.layers.0.mlp.experts.down_proj_bias",
    "mamba": "backbone.layers.0.mixer.A_log",
}


def tiny(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **COMMON, **DECAY[kind]))


@pytest.mark.parametrize("kind", DECAY)
def test_the_matrices_that_hugging_face_decays_are_decayed(kind: str) -> None:
    from transformers import Trainer

    model = tiny(kind)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theirs = {
        name
        for name in Trainer.get_decay_parameter_names(cast(Any, None), model)
        if name in shapes and len(shapes[name]) >= 2 and not name.endswith(("A_log", ".D", "dt_bias"))
    }
    assert set(decayed(model)) == theirs
    optimizer = build_optimizer(spec(weight_decay=0.1), model)
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in optimizer.param_groups}
    assert groups[0.1] == {id(p) for name, p in model.named_parameters() if name in theirs}
    if kind in UNDECAYED:  # which a rule by the number of dimensions decays
        assert len(shapes[UNDECAYED[kind]]) == 2
        assert UNDECAYED[kind] not in theirs


def test_a_weight_that_its_model_marks_is_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[0].weight._no_weight_decay = True
    assert decayed(model) == ["1.weight"]


def test_an_optimizer_state_of_before_is_loaded_by_name() -> None:
    """Saved without names, with all weights of two dimensions first."""
    model = tiny("cohere")
    named = list(model.named_parameters())
    before = torch.optim.AdamW(
        [{"params": [p for _, p in named if p.ndim >= 2]}, {"params": [p for _, p in named if p.ndim < 2]}]
    )
    for number, (_, parameter) in enumerate(named):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    before.step()
    now = build_optimizer(spec(), model)
    order = optimizer_order(now, model)
    old = numbering(before.state_dict(), {name: tuple(p.shape) for name, p in named})
    assert old != order, "control: the numbers have changed"
    strategy = SimpleNamespace(model=model, optimizer=now)
    checkpoint._put_state(cast(Any, strategy), before.state_dict())
    assert all(torch.equal(now.state[p]["exp_avg"], before.state[p]["exp_avg"]) for _, p in named)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_embedding_has_a_32_bit_state(name: str) -> None:
    model = nn.ModuleList([nn.Embedding(128, 64), nn.Linear(64, 128, bias=False)])
    table, linear = model
    optimizer = build_optimizer(spec(optimizer=name), model)
    linear(table(torch.arange(128))).square().sum().backward()
    gradient = table.weight.grad
    optimizer.step()
    assert optimizer.state[linear.weight]["state1"].dtype == torch.uint8
    moment = optimizer.state[table.weight]["state1"]
    assert moment.dtype == torch.float32
    assert torch.allclose(moment, 0.1 * gradient, rtol=1e-6), "PyTorch's first moment after one step"
    other = build_optimizer(spec(optimizer=name), nn.Linear(128, 128, bias=False))
    other.param_groups[0]["params"][0].grad = torch.ones(128, 128)
    other.step()
    (state,) = other.state.values()
    assert state["state1"].dtype == torch.uint8, "control: another optimizer of the process keeps its 8 bits"


def test_betas_default_by_optimizer() -> None:
    """AdamW as in PyTorch, Lion as in its paper (arXiv 2302.06675)."""
    assert spec().betas == (0.9, 0.999) == torch.optim.AdamW([torch.ones(1)]).defaults["betas"]
    assert spec(optimizer="lion").betas == (0.9, 0.99)
    assert spec(optimizer="lion", betas=[0.9, 0.999]).betas == (0.9, 0.999)
    (group, *_) = build_optimizer(spec(optimizer="lion"), nn.Linear(4, 4)).param_groups
    assert group["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_a_paged_state_stays_paged_when_it_is_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the pages, which need a GPU."""
    model = nn.Linear(128, 64, bias=False)

    def trained() -> Any:
        optimizer = build_optimizer(spec(optimizer=name), model)

        def paged(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            buffer: Any = torch.zeros_like(weight, dtype=dtype)
            buffer.is_paged = True
            return buffer

        monkeypatch.setattr(optimizer, "get_state_buffer", paged)
        monkeypatch.setattr(optimizer, "prefetch_state", lambda weight: None)
        model(torch.ones(2, 128)).sum().backward()
        optimizer.step()
        return optimizer

    first = trained()
    expected, saved = first.state[model.weight], first.state_dict()
    resumed, fresh = trained(), build_optimizer(spec(optimizer=name), model)
    monkeypatch.setattr(fresh, "get_state_buffer", resumed.get_state_buffer)
    pages = {key: resumed.state[model.weight][key] for key in ("state1", "state2")}
    for optimizer in (resumed, fresh):
        load_state(optimizer, saved)
        loaded = optimizer.state[model.weight]
        for key in pages:
            assert getattr(loaded[key], "is_paged", False)
            assert torch.equal(loaded[key], expected[key])
    assert all(resumed.state[model.weight][key] is page for key, page in pages.items()), "pages are not freed"
