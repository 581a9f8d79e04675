"""Which quantized bases a plan accepts, and how it counts their weights."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.plan import Plan, build, quantized
from tests.plan.test_build import DATA, GPU, LLAMA_8B, recipe

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
LORA = {"adapter": {}, "quantize": None}


def plan(stored: dict[str, Any] | None, *, nested: bool = False, **sections: Any) -> Plan:
    config = {**LLAMA_8B, **({"quantization_config": stored} if stored else {})}
    if nested:
        config = {"model_type": "x", "text_config": config}
    sections["model"] = {**LORA, **sections.get("model", {})}
    train = {"micro_batch_size": 1, **sections.pop("train", {})}
    return build(recipe(train=train, **sections), DATA, config, GPU, run_url="runs/x")


@pytest.mark.parametrize(("stored", "kind"), [(NF4, "nf4"), (INT8, "int8")])
def test_stored_weights_are_counted_as_they_are_stored(stored: dict[str, Any], kind: str) -> None:
    expected = plan(None, model={"quantize": {"type": kind}})
    found = plan(stored)
    assert found.memory == expected.memory
    assert found.quantization == expected.quantization == kind
    assert found.model.quantize is None
    assert plan(stored, nested=True).memory.weights == found.memory.weights
    plain = plan(None)
    assert plain.quantization is None
    assert plain.memory.weights > 1.5 * found.memory.weights, "the control"
    assert plan(stored, model={"dequantize": True}).memory == plain.memory


def test_modules_that_are_stored_plain_are_counted() -> None:
    names = ["lm_head", "model.layers.0.mlp", "model.layers.0.mlp.up_proj", "model.layers.7.self_attn.k_proj"]
    skipped = plan({**NF4, "llm_int8_skip_modules": names}).memory.weights - plan(NF4).memory.weights
    weights = 3 * 4096 * 14336 + 4096 * 1024
    assert skipped == pytest.approx(weights * (2 - 0.516), abs=2)


@pytest.mark.parametrize(
    ("stored", "sections", "message", "hint"),
    [
        ({"quant_method": "gptq", "bits": 4}, {}, "quantized with gptq.*package gptqmodel", "made from"),
        ({"quant_method": "awq"}, {}, "quantized with awq.*package gptqmodel", "made from"),
        ({"quant_method": "compressed-tensors"}, {}, "package compressed-tensors", "made from"),
        ({"quant_method": "hqq"}, {"model": {"dequantize": True}}, "quantized with hqq", "made from"),
        ({"quant_method": "bitnet"}, {}, "quantized with bitnet, on which tailor does not train;", "made from"),
        ({"bits": 4}, {}, "quantized with an unnamed format", "made from"),
        ({"quant_method": "fp8"}, {}, "fp8, on which tailor trains only after", "model.dequantize: true"),
        ({"quant_method": "mxfp4"}, {}, "mxfp4, on which tailor trains only after", "model.dequantize: true"),
        (NF4, {"model": {"quantize": {}}}, "quantized already .bitsandbytes, nf4.", "remove model.quantize"),
        (NF4, {"model": {"adapter": None}}, "quantized weights cannot be trained", "model.adapter, or"),
        (None, {"model": {"dequantize": True}}, "has no effect", "remove model.dequantize"),
        (INT8, {"scale": {"strategy": "fsdp", "workers": 2}}, "shards every weight.*bitsandbytes, int8", "ddp"),
    ],
)  # fmt: skip
def test_refusals(stored: Any, sections: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        plan(stored, **sections)
    assert hint in str(caught.value.hint)


def test_what_is_refused_is_accepted_with_its_hint() -> None:
    for stored in ({"quant_method": "fp8"}, {"quant_method": "mxfp4"}, NF4):
        for adapter in ({}, None):
            plan(stored, model={"dequantize": True, "adapter": adapter})
    dequantized = {"dequantize": True}
    plan(NF4, model={**dequantized, "quantize": {}})
    plan(INT8, model=dequantized, scale={"strategy": "fsdp", "workers": 2})
    random = {"init": "random", "adapter": None}
    assert plan({"quant_method": "gptq"}, model=random).quantization is None


def test_every_format_of_transformers_is_known() -> None:
    """A format that is not listed is refused too, but without its package."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    names = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    without_package = {"bitnet", "gemma", "gguf", "mxfp8"}
    assert names - without_package == quantized.PACKAGES.keys() | set(quantized.DEQUANTIZED)
