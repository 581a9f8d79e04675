"""An adapter on routed experts that would not train ends the load, and every other choice says what it adapts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tailor.errors import ModelError
from tailor.models.adapters import add_adapter
from tailor.models.experts import low_rank
from tailor.models.experts.check import require_attached, require_gradients
from tailor.models.experts.low_rank import wrappers
from tailor.models.experts.stacks import stacks
from tailor.models.load import load_network
from tailor.spec.adapter import Adapter
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.spec.optim import Optim
from tailor.spec.train import Train
from tailor.train.preflight import preflight
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import tiny_llama
from tests.models.experts.test_adapters import ADAPTER, IDS, load


def network_of(folder: Path, name: str = "qwen2_moe") -> Any:
    return AutoModelForCausalLM.from_pretrained(MIXTURES[name].make(folder), dtype=torch.float32)


def test_an_adapter_that_peft_does_not_attach_is_refused(tmp_path: Path) -> None:
    """PEFT attaches none to tensors that bitsandbytes quantized, and trains the attention alone."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit
    from peft import LoraConfig, get_peft_model

    network = network_of(tmp_path)
    found = stacks(network)
    for stack in found:
        replace_parameter_4bit(network.get_submodule(stack.module), stack.parameter)
    targets = {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    adapted: Any = get_peft_model(network, LoraConfig(r=4, **targets))  # type: ignore[arg-type]
    assert not [name for name, _ in adapted.named_parameters() if "lora_" in name and "experts" in name]
    with pytest.raises(
        ModelError, match="PEFT attached no adapter to 16 of the 16 matrices of routed experts"
    ):
        require_attached(adapted.get_base_model(), found)


class Separate(torch.nn.Module):
    """Experts as modules of their own, as code of older models has them. Each token goes to all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(width, 4, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)  # [B, T, H, experts]
        return (outputs * self.gate(x).softmax(-1)[:, :, None]).sum(-1)


@pytest.mark.parametrize("experts", [None, True, False, "shared"])
def test_experts_in_modules_of_their_own_are_linear_modules(tmp_path: Path, experts: Any) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path), dtype=torch.float32)
    for layer in network.model.layers:
        layer.mlp = Separate(network.config.hidden_size)
    spec = Adapter(**{**ADAPTER, "experts": experts})
    if experts == "shared":
        with pytest.raises(ModelError, match="has no shared experts, only routed ones"):
            add_adapter(network, spec, mixed_precision=False)
        return
    adapted = add_adapter(network, spec, mixed_precision=False)
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    factors = {name: weight for name, weight in adapted.named_parameters() if "lora_B" in name}
    of_experts = [weight for name, weight in factors.items() if ".experts." in name]
    assert len(of_experts) == (0 if experts is False else 4 * len(network.model.layers))
    assert all(bool(weight.grad.any()) for weight in of_experts)
    assert any("q_proj" in name for name in factors)
    assert not any(".gate." in name for name in factors)


def test_an_expert_whose_adapter_gets_no_gradient_is_refused(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    adapted = add_adapter(network, Adapter(**ADAPTER), mixed_precision=False)
    base = adapted.get_base_model()
    require_gradients(base)
    experts = next(wrappers(base.get_submodule("model.layers.1.mlp.experts"))).get_base_layer()
    experts.down_proj.data[2] = 0  # nothing of the first projection passes
    with pytest.raises(
        ModelError, match=r"1 of the 4 experts of model.layers.1.mlp.experts.gate_up_proj get no"
    ):
        require_gradients(base)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4_text"])
def test_the_low_rank_products_equal_the_merged_weights(tmp_path: Path, name: str) -> None:
    """Outputs and gradients of the grouped low-rank products are those of PEFT, which adds the updates to the weights."""
    network = network_of(tmp_path, name)
    network.set_attn_implementation("eager")
    adapted = add_adapter(network, Adapter(**{**ADAPTER, "rank": 3}), mixed_precision=False)
    generator = torch.Generator().manual_seed(3)
    for parameter in (p for n, p in adapted.named_parameters() if "lora_B" in n):
        parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    ours = outputs(adapted)
    for module in adapted.modules():
        vars(module).pop("forward", None)
    theirs = outputs(adapted)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    low_rank.install(adapted)
    with adapted.disable_adapter(), torch.no_grad():
        off = adapted(input_ids=IDS, use_cache=False).logits
    assert (off - ours[0]).norm() > 0.1 * ours[0].norm(), "without the adapter the outputs differ"
    torch.testing.assert_close(off, network_of(tmp_path, name)(input_ids=IDS, use_cache=False).logits)


def outputs(adapted: Any) -> list[torch.Tensor]:
    """The logits, and the gradients of the adapters."""
    logits = adapted(input_ids=IDS, use_cache=False).logits
    trained = [parameter for name, parameter in adapted.named_parameters() if "lora_" in name]
    return [logits.detach(), *torch.autograd.grad(logits.square().mean(), trained)]


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        (None, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("shared", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (False, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (True, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "experts"}),
    ],
)
def test_which_experts_are_adapted(tmp_path: Path, experts: Any, expected: set[str]) -> None:
    adapted = add_adapter(network_of(tmp_path), Adapter(rank=4, experts=experts), mixed_precision=False)
    names = [name.replace(".base_layer", "") for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name in names} == expected


@pytest.mark.parametrize(
    ("key", "value", "family", "message"),
    [
        ("experts", True, None, "model.adapter.experts: LlamaForCausalLM is no mixture of experts"),
        ("experts", False, None, "model.adapter.experts: LlamaForCausalLM is no mixture of experts"),
        ("router", True, None, "model.adapter.router: LlamaForCausalLM is no mixture of experts"),
        ("experts", "shared", "mixtral", "MixtralForCausalLM has no shared experts, only routed ones"),
    ],
)
def test_a_choice_without_such_experts_is_refused(
    tmp_path: Path, key: str, value: Any, family: str | None, message: str
) -> None:
    base = MIXTURES[family].make(tmp_path) if family else tiny_llama(tmp_path)
    with pytest.raises(ModelError, match=message):
        load(base, **{"experts": None, key: value})


def test_ranks_of_stacks(tmp_path: Path) -> None:
    adapted = add_adapter(
        network_of(tmp_path),
        Adapter(rank=4, experts=True, rank_pattern={"experts.gate_up_proj": 2, "q_proj": 8}),
        mixed_precision=False,
    )
    layers = list(wrappers(adapted.get_base_model().get_submodule("model.layers.0.mlp.experts")))
    assert {layer.parameter_name: layer.r["default"] for layer in layers} == {
        "gate_up_proj": 2,
        "down_proj": 4,
    }
    with pytest.raises(ModelError, match=r"rank_pattern names experts\.w1, which matches none"):
        add_adapter(
            network_of(tmp_path),
            Adapter(rank=4, experts=True, rank_pattern={"experts.w1": 2}),
            mixed_precision=False,
        )


@pytest.mark.parametrize(
    ("quantize", "experts", "message"),
    [
        ("nf4", None, "modules_to_save names experts, whose weights are quantized and cannot be trained"),
        (
            None,
            True,
            "modules_to_save names experts, whose routed experts model.adapter.experts: true adapts",
        ),
    ],
)
def test_experts_in_full_that_cannot_be_are_refused(
    tmp_path: Path, quantize: str | None, experts: bool | None, message: str
) -> None:
    """In training and, before that, in the check of the plan."""
    base = MIXTURES["mixtral"].make(tmp_path)
    spec = Model(
        path=str(base),
        adapter=Adapter(rank=4, experts=experts, modules_to_save=["experts"]),
        quantize=None if quantize is None else {"type": quantize},  # type: ignore[arg-type]
    )
    with pytest.raises(ModelError, match=message):
        add_adapter(
            load_network(spec, dtype=torch.float32, device=torch.device("cpu")),
            spec.adapter,  # type: ignore[arg-type]
            mixed_precision=False,
        )
    with pytest.raises(ModelError, match=message):
        preflight(spec, Sft(name="sft"), Optim(learning_rate=1e-3), Train())
