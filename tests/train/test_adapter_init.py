"""`model.adapter.init` and patterns: trained as plain PEFT does, and saved as a LoRA adapter of the unchanged base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tailor.artifacts.inputs import open_input
from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.errors import ModelError, StoreError
from tailor.models import adapter_init
from tailor.spec.model import Model
from tailor.store import Store
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.adapters import random_adapter
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import byte_tokenizer, load_model, tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

IDS = torch.tensor([[9, 41, 77, 130, 12, 200, 33, 8]])
PATTERNS = {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.\w+": 6}, "alpha_pattern": {"k_proj": 24}}
CASES: dict[str, dict[str, Any]] = {
    "patterns": {**PATTERNS},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal", "rslora": True},
    "pissa": {"init": "pissa", **PATTERNS, "modules_to_save": ["lm_head"]},
    "pissa, rslora": {"init": "pissa", **PATTERNS, "rslora": True, "dropout": 0.1},
    "olora": {"init": "olora", "target_modules": ["q_proj", "down_proj"]},
}
IN_CI = [case if case == "pissa, rslora" else pytest.param(case, marks=pytest.mark.soak) for case in CASES]
"""Cases of the longest test: one runs in CI."""
Made = tuple[Path, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("inits")
    return tiny_llama(folder / "model"), make_store(folder / "tokens", [20, 33, 41, 25] * 9)


def plan_of(made: Made, run: Path, adapter: dict[str, Any], **sections: Any) -> Any:
    ranks = {} if adapter.get("type") in ("oft", "ia3", "vera") else {"rank": 4, "alpha": 8}
    values: dict[str, Any] = {"model": {"adapter": {**ranks, **adapter}}, "optim": {"learning_rate": 0.02}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return make_plan(*made, run, **values)


class Watch:
    """Keeps the logits of the trained model and of the model without its adapter."""

    def __call__(self, session: Session, when: str, step: int) -> None:
        network = session.model.base
        network.set_attn_implementation("sdpa")
        session.model.eval()
        with torch.no_grad():
            self.logits = session.model.network(IDS, use_cache=False).logits
            with session.model.without_adapter():
                self.base = session.model.network(IDS, use_cache=False).logits
        network.set_attn_implementation("tailor_documents")


def plain(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@torch.no_grad()
def logits(network: Any) -> torch.Tensor:
    return network(IDS).logits


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("case", IN_CI)
def test_the_saved_adapter_is_the_trained_model_in_plain_peft(made: Made, tmp_path: Path, case: str) -> None:
    from peft import PeftModel

    watch = Watch()
    plan = plan_of(made, tmp_path / "run", CASES[case], save={"every": 3})
    loop.run(plan, PlainHost(), [watch])
    saved = tmp_path / "run" / "adapter"
    assert difference(logits(plain(made[0])), watch.logits) > 0.05, "control: training changed the model"
    assert torch.equal(watch.base, logits(plain(made[0]))), "the reference model is the base"
    assert (
        difference(logits(PeftModel.from_pretrained(plain(made[0]), str(saved)).eval()), watch.logits) < 1e-5
    )
    merged = merge(str(saved), str(tmp_path / "merged"))
    assert merged.figures.kl < 1e-7
    assert difference(logits(plain(tmp_path / "merged")), watch.logits) < 1e-5
    assert difference(logits(load_run(str(tmp_path / "run")).model), watch.logits) < 1e-5
    Store(plan.run_url).write_json("plan.json", plan.as_dict())
    from contextlib import ExitStack

    with ExitStack() as stack:  # the last checkpoint, as average and export read it
        other = open_input(f"{tmp_path}/run/checkpoints/step-00000006", tmp_path / "scratch", stack)
        ours, theirs = (
            load_file(other.folder / "adapter_model.safetensors"),
            load_file(saved / "adapter_model.safetensors"),
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        expected = logits(PeftModel.from_pretrained(plain(made[0]), str(other.folder)).eval())
        assert difference(expected, watch.logits) < 1e-5


def adapted(base: Path, **adapter: Any) -> Any:
    model = load_model(
        Model(path=str(base), adapter=adapter, attention="sdpa"),
        seed=3,
    )
    return model.network


def trained(network: Any, steps: int = 4) -> list[float]:
    """Losses of an own loop."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_training_equals_that_of_pefts_own_init(made: Made, init: str) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=init, **PATTERNS)  # type: ignore[arg-type]
    expected = trained(get_peft_model(plain(made[0]), config))
    settings = {"rank": 4, "alpha": 8, **PATTERNS}
    assert trained(adapted(made[0], init=init, **settings)) == pytest.approx(expected, rel=1e-5)
    default = trained(adapted(made[0], **settings))
    assert default[0] == pytest.approx(expected[0], rel=1e-5), "every init starts as the base"
    assert default[-1] != pytest.approx(expected[-1], rel=1e-3), "control: the init matters"


@pytest.mark.parametrize("init", [pytest.param("orthogonal", marks=pytest.mark.soak), "pissa"])
def test_a_resumed_run_is_bit_equal_on_another_machine(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    """Another machine computes other singular vectors."""
    whole = PlainHost()
    loop.run(plan_of(made, tmp_path / "whole", {"init": init}), whole)
    plan = plan_of(made, tmp_path / "run", {"init": init})
    first = PlainHost(stop_after=3)
    loop.run(plan, first)
    factorize = adapter_init._factorize

    def other(layer: Any, *arguments: Any) -> None:
        factorize(layer, *arguments)
        for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
            factor.data *= 1.1

    monkeypatch.setattr(adapter_init, "_factorize", other)
    again = PlainHost(resume_from=plan.run_url)
    loop.run(plan, again)
    assert [*first.losses(), *again.losses()] == whole.losses()
    files = [
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("run", "whole")
    ]
    assert files[0] == files[1]
    control = PlainHost()
    loop.run(plan_of(made, tmp_path / "control", {"init": init}), control)
    assert control.losses() != whole.losses(), "control: the factors matter"


def _losses(host: PlainHost, made: Made, run: Path, adapter: dict[str, Any], micro: int) -> list[float]:
    if host.rank:  # as on a machine with another SVD
        factorize = adapter_init._factorize

        def other(layer: Any, *arguments: Any) -> None:
            factorize(layer, *arguments)
            layer.lora_A["default"].weight.data *= 1.1

        adapter_init._factorize = other  # type: ignore[assignment]
    loop.run(plan_of(made, run, adapter, train={"micro_batch_size": micro}), host)
    return host.losses()


@pytest.mark.soak
@pytest.mark.parametrize("init", ["orthogonal", "pissa"])
def test_accumulation_changes_nothing(made: Made, tmp_path: Path, init: str) -> None:
    one = _losses(PlainHost(), made, tmp_path / "one", {"init": init}, 1)
    assert _losses(PlainHost(), made, tmp_path / "four", {"init": init}, 4) == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.soak
def test_workers_change_nothing(made: Made, tmp_path: Path) -> None:
    adapter = {"init": "pissa"}
    one = _losses(PlainHost(), made, tmp_path / "one", adapter, 1)
    assert run_distributed(_losses, made, tmp_path / "two", adapter, 1)[0] == pytest.approx(one, rel=1e-5)


def test_loftq_approximates_the_quantization_error(made: Made, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", hidden_size=128)
    watch = Watch()
    adapter = {"init": "loftq", "rank": 8, "alpha": 32, "rank_pattern": {"q_proj": 16}}
    plan = plan_of((base, made[1]), tmp_path / "run", adapter, model={"quantize": {}, "path": str(base)})
    loop.run(plan, PlainHost(), [watch])
    assert difference(logits(load_run(str(tmp_path / "run")).model), watch.logits) < 1e-3
    assert merge(str(tmp_path / "run"), str(tmp_path / "merged")).figures.kl < 1e-5
    from peft.utils.integrations import dequantize_module_weight

    fresh = load_model(
        plan.model,
    )
    whole = plain(base)
    for name, rank in (("model.layers.0.self_attn.q_proj", 16), ("model.layers.1.mlp.up_proj", 8)):
        layer = fresh.base.get_submodule(name)
        error = whole.get_submodule(name).weight - dequantize_module_weight(layer.base_layer)
        left = error - layer.get_delta_weight("default")
        optimum = torch.linalg.svdvals(error.detach())[rank:].norm()
        assert left.norm().item() == pytest.approx(optimum.item(), rel=1e-4)
        assert left.norm().item() < 0.95 * error.norm().item()


def test_an_init_that_a_module_does_not_support_is_refused(made: Made, tmp_path: Path) -> None:
    for adapter, expected in (
        (
            {"init": "pissa", "rank": 65},
            r"pissa does not support .*q_proj: its weight is 64 × 64, which has fewer than 65",
        ),
        (
            {"init": "olora", "target_modules": ["embed_tokens"]},
            r"olora does not support .*: it is of the type Embedding",
        ),
        ({"init": "orthogonal", "rank": 4, "rank_pattern": {"v_proj": 3}}, r"v_proj: its rank 3 is odd"),
        ({"rank_pattern": {"c_attn": 3}}, r"rank_pattern names c_attn, which matches none"),
        ({"alpha_pattern": {"c_attn": 3}}, r"alpha_pattern names c_attn, which matches none"),
    ):
        with pytest.raises(ModelError, match=expected):
            adapted(made[0], **adapter)


def tiny_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 261, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.15}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(**sizes, **dropouts))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
    network.save_pretrained(folder)
    return byte_tokenizer(folder)


def test_conv1d(tmp_path: Path) -> None:
    """GPT-2 stores its weights transposed."""
    from peft import LoraConfig, get_peft_model

    base = tiny_gpt2(tmp_path / "gpt2")
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], init_lora_weights="pissa", fan_in_fan_out=True
    )
    settings = {"rank": 4, "alpha": 8, "target_modules": ["c_attn", "c_fc"]}
    expected = trained(get_peft_model(plain(base), config))
    assert trained(adapted(base, init="pissa", **settings)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ModelError, match=r"olora does not support .*c_attn: it is of the type Conv1D"):
        adapted(base, init="olora", **settings)


def test_a_warm_start(made: Made, tmp_path: Path) -> None:
    first = PlainHost()
    loop.run(plan_of(made, tmp_path / "first", {"init": "pissa"}, save={"every": 3}), first)
    saved, step = str(tmp_path / "first"), f"{tmp_path}/first/checkpoints/step-00000006"
    with pytest.raises(
        StoreError, match=r"is an adapter, which replaces the start that model\.adapter\.init"
    ):
        loop.run(plan_of(made, tmp_path / "b", {"init": "pissa"}, model={"warm_start": saved}), PlainHost())
    losses = []
    for name, adapter, source in (
        ("lora", {"rank": 8, "alpha": 16}, saved),
        ("pissa", {"init": "pissa"}, step),
    ):
        host = PlainHost()
        plan = plan_of(made, tmp_path / name, adapter, model={"warm_start": source})
        loop.run(plan, host)
        losses.append(host.losses()[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] < first.losses()[0]


@pytest.mark.parametrize(
    "init",
    [
        "pissa",
        *(
            pytest.param(n, marks=pytest.mark.soak)
            for n in ("pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
        ),
    ],
)
def test_an_adapter_of_a_changed_base_is_refused(made: Made, tmp_path: Path, init: str) -> None:
    from tailor.artifacts.average import average

    good = random_adapter(tmp_path / "good", made[0])
    adapter = random_adapter(tmp_path / "adapter", made[0])
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": init}))
    for act in (
        lambda: merge(str(adapter), str(tmp_path / "merged")),
        lambda: average([str(good), str(adapter)], str(tmp_path / "average")),
        lambda: load_run(str(adapter)),
        lambda: loop.run(plan_of(made, tmp_path / "b", {}, model={"warm_start": str(adapter)}), PlainHost()),
    ):
        with pytest.raises(
            ModelError, match=f"init_lora_weights: {init}, which changes the base's weights"
        ) as caught:
            act()
        assert "path_initial_model_for_weight_conversion" in str(caught.value.hint)
    assert not (tmp_path / "merged").exists()
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": "gaussian"}))
    merge(str(adapter), str(tmp_path / "merged"))


@pytest.mark.soak
def test_loftq_of_conv1d(tmp_path: Path) -> None:
    """bitsandbytes turns a Conv1D into a linear layer, whose weight is transposed."""
    from peft.utils.integrations import dequantize_module_weight

    base = tiny_gpt2(tmp_path / "gpt2")
    spec = {
        "path": str(base),
        "adapter": {"init": "loftq", "rank": 8, "target_modules": ["c_proj"]},
        "quantize": {},
    }
    model = load_model(
        Model.model_validate(spec),
    )
    name = "transformer.h.0.attn.c_proj"  # square
    layer = model.base.get_submodule(name)
    error = plain(base).get_submodule(name).weight.T - dequantize_module_weight(layer.base_layer)
    left = error - layer.get_delta_weight("default")
    assert left.norm().item() == pytest.approx(
        torch.linalg.svdvals(error.detach())[8:].norm().item(), rel=1e-4
    )
