"""Base models whose weights are stored quantized: which formats are trained on, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tailor.errors import ModelError
from tailor.plan.facts import ModelFacts
from tailor.spec.adapter import REPLACING, Adapter
from tailor.spec.model import Model, Quantize
from tailor.spec.strategy import Strategy

KEPT = "bitsandbytes"
"""The format whose weights stay quantized under an adapter."""
_IN_LAYER = re.compile(r"layers\.(\d+)\.(self_attn|mlp)(?:\.(\w+))?$")
DEQUANTIZED = (KEPT, "fp8", "mxfp4")
"""The formats that `model.dequantize` dequantizes."""
PACKAGES = {
    "aqlm": "aqlm",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fbgemm_fp8": "kernels",
    "fouroversix": "fouroversix",
    "fp_quant": "fp_quant",
    "gptq": "gptqmodel",
    "higgs": "flute-kernel",
    "hqq": "hqq",
    "metal": "kernels",
    "nvfp4": "kernels",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "sinq": "sinq",
    "spqr": "spqr_quant",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""Formats that tailor does not train on -> the package with which transformers loads them."""


def method(config: Mapping[str, Any]) -> str | None:
    """The format in which a `config.json` says that the weights are stored quantized; None for plain weights."""
    settings = _settings(config)
    if settings is None:
        return None
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return KEPT
    return str(settings.get("quant_method", "an unnamed format"))


def stored(config: Mapping[str, Any]) -> Quantize | None:
    """The quantization of weights that stay quantized, as `model.quantize` would name it."""
    settings = _settings(config)
    if settings is None or method(config) != KEPT:
        return None
    if settings.get("load_in_8bit"):
        return Quantize(type="int8")
    kind = (
        "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" else "fp4"
    )  # fp4 is the default of bitsandbytes
    return Quantize(type=kind, double=bool(settings.get("bnb_4bit_use_double_quant")))


def plain_parameters(config: Mapping[str, Any], facts: ModelFacts) -> int:
    """Number of weights in linear modules of decoder layers that the config excludes from the stored quantization."""
    width = facts.heads * facts.head_dim
    sizes = {
        "self_attn": {"q_proj": width, "k_proj": facts.kv, "v_proj": facts.kv, "o_proj": width},
        "mlp": dict.fromkeys(("gate_proj", "up_proj", "down_proj"), facts.intermediate),
    }
    skipped: set[tuple[str, str, str]] = set()
    for name in (_settings(config) or {}).get("llm_int8_skip_modules") or ():
        if found := _IN_LAYER.search(str(name)):
            layer, block, module = found.groups()
            skipped |= {(layer, block, each) for each in sizes[block] if module in (None, each)}
    return sum(facts.hidden * sizes[block][module] for _, block, module in skipped)


def as_loaded(model: Model, config: Mapping[str, Any]) -> Model:
    """The model section with the quantization of the loaded weights in `quantize`, wherever it comes from."""
    if model.dequantize or model.quantize is not None or model.init == "random":
        return model
    return model.model_copy(update={"quantize": stored(config)})


def check(model: Model, config: Mapping[str, Any]) -> None:
    """Raise ModelError if the model cannot be trained on weights as they are stored."""
    name = method(config)
    if model.init == "random":
        return
    if name is None:
        if model.dequantize:
            raise ModelError(
                f"model.dequantize has no effect: the weights of {model.path} are not quantized",
                hint="remove model.dequantize",
            )
        return
    if name not in DEQUANTIZED:
        package = f" (transformers loads it with the package {PACKAGES[name]})" if name in PACKAGES else ""
        raise ModelError(
            f"model.path: the weights of {model.path} are quantized with {name}, on which tailor does not train{package}",
            hint="use the model that it was made from, with model.quantize to save memory",
        )
    if model.dequantize:
        return
    if name != KEPT:
        raise ModelError(
            f"model.path: the weights of {model.path} are quantized with {name}, on which tailor trains only after dequantizing them",
            hint="set model.dequantize: true, or use the model that it was made from",
        )
    if model.quantize is not None:
        raise ModelError(
            f"model.quantize: the weights of {model.path} are quantized already ({_named(config)})",
            hint="remove model.quantize, or set model.dequantize: true to quantize them again",
        )
    if model.adapter is None and model.beacon is None:
        raise ModelError(
            f"model.path: the weights of {model.path} are quantized ({_named(config)}), and quantized weights cannot be trained",
            hint="set model.adapter, or model.dequantize: true to train all weights",
        )
    if model.adapter is not None:
        _check_adapter(model, model.adapter, config)
    if model.beacon is not None and model.beacon.rank is None:
        raise ModelError(
            f"model.beacon: the weights of {model.path} are quantized ({_named(config)}), and quantized projections cannot be copied",
            hint="set model.beacon.rank, or model.dequantize: true",
        )


def _check_adapter(model: Model, adapter: Adapter, config: Mapping[str, Any]) -> None:
    """ModelError for what the recipe's own rules refuse together with `model.quantize`."""
    refused: tuple[str, str, str] | None = None
    if not adapter.kind.quantized:
        refused = "type", adapter.type, "lora, oft, ia3 or vera"
    elif adapter.init in (*REPLACING, "orthogonal"):
        refused = "init", adapter.init, "default or gaussian"
    if refused is not None:
        key, value, others = refused
        raise ModelError(
            f"model.adapter.{key}: {value} is not supported on a quantized base, and the weights of {model.path} are "
            f"quantized ({_named(config)})",
            hint=f"use {others}, or set model.dequantize: true",
        )


def check_strategy(model: Model, config: Mapping[str, Any], strategy: Strategy) -> None:
    """Raise ModelError if `strategy` would shard weights that stay quantized."""
    if strategy.shards_weights and model.quantize is None and as_loaded(model, config).quantize is not None:
        raise ModelError(
            f"scale.strategy {strategy.name} shards every weight, and the quantized weights of {model.path} "
            f"({_named(config)}) cannot be sharded",
            hint="use ddp, or deepspeed stage 1 or 2, or set model.dequantize: true",
        )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    text = config.get("text_config") or {}
    found = config.get("quantization_config") or text.get("quantization_config")
    return found if isinstance(found, Mapping) else None


def _named(config: Mapping[str, Any]) -> str:
    kept = stored(config)
    return f"{KEPT}, {kept.type}" if kept else str(method(config))
