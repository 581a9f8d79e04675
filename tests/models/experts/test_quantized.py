"""Quantized experts: their products are those of the dequantized stacks, their adapters train, merge and reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.errors import ModelError
from tailor.models.experts.check import require_gradients
from tailor.models.experts.low_rank import wrappers
from tailor.models.experts.packed import ATTRIBUTE, is_placeholder, packed_stacks
from tailor.models.outline import build, read
from tailor.spec.adapter import Adapter
from tailor.spec.model import Model, Quantize
from tests.helpers.mixtures import MIXTURES
from tests.helpers.models import load_model
from tests.models.experts.test_adapters import ADAPTER, IDS, distance, plain_logits, train

TYPES = ["nf4", "int8"]


def load(base: Path, quantize: str | None, *, again: bool = False, adapter: Any = ADAPTER) -> Any:
    return load_model(
        Model(
            path=str(base),
            quantize=Quantize(type=quantize) if quantize else None,  # type: ignore[arg-type]
            adapter=Adapter(**adapter),
        ),
        activation_checkpointing=again,
    )


def outputs(model: Any) -> list[torch.Tensor]:
    """The logits, and the gradients of the adapters, whose B is not 0."""
    generator = torch.Generator().manual_seed(3)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    model.base.set_attn_implementation("eager")
    logits = model.network.train()(input_ids=IDS, use_cache=False).logits
    return [logits.detach(), *torch.autograd.grad(logits.square().mean(), [p for _, p in trained])]


def with_dequantized_stacks(model: Any) -> Any:
    for module in model.base.modules():
        for name, stack in vars(module).pop(ATTRIBUTE, {}).items():
            setattr(module, name, torch.nn.Parameter(stack.dequantized(), requires_grad=False))
    return model


@pytest.mark.parametrize("quantize", TYPES)
@pytest.mark.parametrize("name", ["qwen2_moe", pytest.param("gpt_oss", marks=pytest.mark.soak)])
def test_the_products_are_those_of_the_dequantized_stacks(tmp_path: Path, name: str, quantize: str) -> None:
    base = MIXTURES[name].make(tmp_path)
    model = load(base, quantize)
    ours = outputs(model)
    size = sum(stack.data.numel() * stack.data.element_size() for stack in packed_stacks(model.base))
    numbers = sum(p.numel() for p in model.base.parameters() if is_placeholder(p))
    assert size == numbers // (2 if quantize == "nf4" else 1)
    again = outputs(load(base, quantize, again=True))
    theirs = outputs(with_dequantized_stacks(model))
    for left, recomputed, right in zip(ours, again, theirs, strict=True):
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(recomputed, left)
    assert distance(ours[0], outputs(load(base, None))[0]) > 1e-3, "quantization changes the model"


def test_every_expert_has_an_adapter_that_trains(tmp_path: Path) -> None:
    """The trap: PEFT on tensors that bitsandbytes quantized attaches none (`test_checks`)."""
    model = load(MIXTURES["qwen2_moe"].make(tmp_path), "nf4")
    modules = [module for name, module in model.base.named_modules() if name.endswith(".experts")]
    assert [layer.num_experts for module in modules for layer in wrappers(module)] == [4, 4, 4, 4]
    require_gradients(model.base)
    experts = next(wrappers(modules[1])).get_base_layer()
    data = getattr(experts, ATTRIBUTE)["down_proj"].data.view(4, -1)
    data[2] = 0x77  # the code of 0, twice: nothing of the first projection passes
    with pytest.raises(ModelError, match=r"1 of the 4 experts of .*gate_up_proj get no gradient"):
        require_gradients(model.base)


def test_reading_a_quantized_stack_gives_nan(tmp_path: Path) -> None:
    model = load(MIXTURES["qwen2_moe"].make(tmp_path), "nf4")
    for module in model.base.modules():
        if is_placeholder(next(module.parameters(recurse=False), torch.zeros(1))):
            assert module.gate_up_proj.isnan().all()
    for module in model.network.modules():
        vars(module).pop("forward", None)  # PEFT's own computation, which reads the parameter
    model.base.set_attn_implementation("eager")
    with torch.no_grad():
        assert model.network(input_ids=IDS, use_cache=False).logits.isnan().all()


@pytest.mark.parametrize("quantize", ["nf4", pytest.param("int8", marks=pytest.mark.soak)])
def test_merged_and_loaded_again(tmp_path: Path, quantize: str) -> None:
    base = MIXTURES["mixtral"].make(tmp_path / "base")
    trained = train(base, tmp_path / "run", quantize=quantize)
    loaded = load_run(str(tmp_path / "run")).model
    loaded.base_model.model.set_attn_implementation("eager")
    with torch.no_grad():
        assert distance(loaded(input_ids=IDS, use_cache=False).logits, trained.logits) < 1e-5
    merge(str(tmp_path / "run"), str(tmp_path / "merged"))
    assert distance(plain_logits(tmp_path / "merged"), trained.logits) < 1e-5
    with pytest.raises(ModelError, match="fails verification"):
        merge(str(tmp_path / "run"), str(tmp_path / "full"), onto="full", tolerance=1e-9)


def test_frozen_experts_are_quantized_too(tmp_path: Path) -> None:
    base = MIXTURES["mixtral"].make(tmp_path)
    model = load(base, "nf4", adapter={"rank": 4})
    assert len(list(packed_stacks(model.base))) == 4
    ours = outputs(model)[0]
    torch.testing.assert_close(ours, outputs(with_dequantized_stacks(model))[0])


def test_the_plan_counts_quantized_experts(tmp_path: Path) -> None:
    spec = Model(path=str(MIXTURES["mixtral"].make(tmp_path)))
    outline = read(build(spec), spec)
    assert outline.quantized > outline.expert > 0.5 * outline.total


def test_experts_that_cannot_be_quantized_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"33% of the weights of Llama4ForCausalLM; .*experts.gate_up_proj"):
        load(MIXTURES["llama4_text"].make(tmp_path), "nf4")
