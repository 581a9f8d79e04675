"""Adapters: which modules get one, in PEFT's terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tailor.errors import ModelError
from tailor.models import linear
from tailor.spec.model import Adapter


def add_adapter(network: Any, spec: Adapter, *, mixed_precision: bool) -> Any:
    """The network with a LoRA adapter (a PeftModel). Adapter weights are float32."""
    from peft import LoraConfig, get_peft_model

    if spec.target_modules == "all-linear":
        is_positive = linear.adaptable(network)
    else:
        _check_names(network, spec.target_modules, "model.adapter.target_modules")
        is_positive = _named(network, spec.target_modules)
        _check_called(network, is_positive)
    _check_names(network, spec.modules_to_save, "model.adapter.modules_to_save")
    _check_saved(network, spec.modules_to_save)
    targets = _shortest(network, is_positive)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        lora_dropout=spec.dropout,
        target_modules=targets,
        modules_to_save=list(spec.modules_to_save) or None,
        use_dora=spec.dora,
        use_rslora=spec.rslora,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(network, config)
    except ValueError as error:  # PEFT knows which modules an architecture cannot adapt
        raise ModelError(
            f"model.adapter: {' '.join(str(error).split())}",
            hint="name the modules in model.adapter.target_modules",
        ) from error
    _check_placed(adapted, is_positive)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    if mixed_precision:
        # Autocast does the casting; PEFT's own cast to float32 would undo it on every input.
        for module in adapted.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    return adapted


def adapter_name(trained: str) -> str:
    """PEFT's name in a file of a trained weight of the wrapped model."""
    name = trained.removeprefix("network.").replace(".modules_to_save.default.", ".").replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def _named(network: nn.Module, names: list[str]) -> list[str]:
    """Full names of the modules whose name ends with one of `names`, as PEFT matches them."""
    return [
        full for full, _ in network.named_modules() if any(f".{full}".endswith(f".{name}") for name in names)
    ]


def _shortest(network: nn.Module, is_positive: list[str]) -> list[str]:
    """The modules by their last names where these mean no other module, so that the saved adapter reads well."""
    last = sorted({name.rsplit(".", 1)[-1] for name in is_positive})
    return last if set(_named(network, last)) == set(is_positive) else is_positive


def _check_called(network: Any, is_positive: list[str]) -> None:
    past = sorted(set(linear.read_directly(network)) & set(is_positive))
    if past:
        raise ModelError(
            f"model.adapter.target_modules names {past[0].rsplit('.', 1)[-1]}, but the training kernel of "
            f"{type(network).__name__} reads the weight of {past[0]} past any adapter on it",
            hint=f"choose from {', '.join(sorted({name.rsplit('.', 1)[-1] for name in linear.adaptable(network)}))}",
        )


def _check_placed(adapted: Any, is_positive: list[str]) -> None:
    """PEFT renames what older checkpoints call otherwise; the adapters must be on the modules that were meant."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = adapted.get_base_model().named_modules()
    placed = {name for name, module in named if isinstance(module, BaseTunerLayer)}
    if odd := sorted(placed ^ set(is_positive)):
        raise ModelError(
            f"model.adapter: PEFT puts adapters on other modules of {type(adapted.get_base_model()).__name__} than "
            f"were meant, for example {odd[0]}",
            hint="name the modules in model.adapter.target_modules",
        )


def _check_saved(network: Any, names: list[str]) -> None:
    """Modules trained in full must have weights that can be trained, and of their own."""
    tables = {"embed_tokens", "wte", "lm_head"} & {name.rsplit(".", 1)[-1] for name in names}
    if tables and getattr(network.config, "tie_word_embeddings", False):
        raise ModelError(
            f"model.adapter.modules_to_save names {min(tables)}, but this model's embedding and head are one "
            "weight, and only a copy of one of them would be trained",
            hint="leave it out, or train all weights",
        )
    for name in names:
        for full, module in network.named_modules():
            if f".{full}".endswith(f".{name}") and any(
                not p.is_floating_point() for p in module.parameters()
            ):
                raise ModelError(
                    f"model.adapter.modules_to_save names {name}, whose weights are quantized and cannot be trained",
                    hint="put it into model.adapter.target_modules, or leave model.quantize out",
                )


def _check_names(network: nn.Module, is_positive: list[str], key: str) -> None:
    named = [name for name, _ in network.named_modules() if name]
    missing = [name for name in is_positive if not any(f".{full}".endswith(f".{name}") for full in named)]
    if missing:
        known = {
            name.rsplit(".", 1)[-1]
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding)
        }
        raise ModelError(
            f"{key} names {', '.join(missing)}, which this model does not have",
            hint=f"choose from {', '.join(sorted(known))}, or all-linear for target_modules",
        )
