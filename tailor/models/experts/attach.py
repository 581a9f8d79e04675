"""Which experts and routers an adapter trains, and their names in PEFT's configuration."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any
from unittest import mock

from torch import nn

from tailor.errors import ModelError
from tailor.models.experts.stacks import Stack, routers, stacks
from tailor.plan.outline import is_routed, is_shared, is_within
from tailor.spec.adapter import Adapter


def chosen_stacks(network: nn.Module, spec: Adapter) -> list[Stack]:
    """The stacks that get an adapter. ModelError for `model.adapter.experts` on a model without experts."""
    if spec.experts is None:
        return []
    found, names = stacks(network), [name for name, _ in network.named_parameters()]
    if not found and not any(is_routed(name) for name in names):
        raise _no_experts("experts", network)
    if spec.experts == "shared" and not any(is_shared(name) for name in names):
        raise ModelError(
            f"model.adapter.experts: {type(network).__name__} has no shared experts, only routed ones",
            hint="set model.adapter.experts: true or false",
        )
    if spec.experts is not True:
        return []
    if in_full := [
        name for name in spec.modules_to_save if any(is_within(stack.name, [name]) for stack in found)
    ]:
        raise ModelError(
            f"model.adapter.modules_to_save names {in_full[0]}, whose routed experts model.adapter.experts: true adapts",
            hint=f"remove {in_full[0]} from model.adapter.modules_to_save, or set model.adapter.experts: shared or false",
        )
    return found


def chosen_routers(network: nn.Module, spec: Adapter) -> list[str]:
    """Full names of the routers to train. ModelError for `model.adapter.router` on a model without routers."""
    found = routers(network) if spec.router else []
    if spec.router and not found:
        raise _no_experts("router", network)
    return found


def _no_experts(key: str, network: nn.Module) -> ModelError:
    return ModelError(
        f"model.adapter.{key}: {type(network).__name__} is no mixture of experts",
        hint=f"remove model.adapter.{key}",
    )


def shortest(network: nn.Module, chosen: Sequence[Stack]) -> list[str]:
    """Names of the stacks for PEFT, which compares the ends of names: with the module's last part if that suffices."""
    names = {stack.name for stack in chosen}
    ends = sorted({".".join(name.split(".")[-2:]) for name in names})
    matched = {
        name for name, _ in network.named_parameters() if name.endswith(tuple(f".{end}" for end in ends))
    }
    return ends if matched == names else sorted(names)


def freeze_corrections(adapted: nn.Module) -> None:
    """Freeze the biases of trained routers that only choose experts: no gradient reaches them."""
    for name, parameter in adapted.named_parameters():
        if "correction_bias" in name:
            parameter.requires_grad_(False)


@contextmanager
def as_named(network: Any) -> Iterator[None]:
    """Context in which PEFT adapts the modules that its configuration names.

    PEFT takes `gate_proj`, `up_proj`, `down_proj` and others of some mixtures of experts for the routed experts of older
    versions of transformers, and would adapt their stacks instead of the shared expert or a dense layer.
    """
    from peft.utils import transformers_weight_conversion

    unchanged = mock.patch.object(transformers_weight_conversion, "_convert_peft_config_moe")
    with unchanged, warnings.catch_warnings():
        # It looks for patterns among modules only, not among stacks. `adapters` checks both.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        yield


def for_peft(config: Any, network: Any) -> dict[str, Any]:
    """The settings to write into adapter_config.json, with which PEFT alone adapts the modules of `config`, sorted.

    Modules that it would take for experts (`as_named`) are named by their weights instead, as `target_parameters`.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    modules = sorted(config.target_modules)
    parameters = sorted(getattr(config, "target_parameters", None) or ())
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if getattr(config, key, None) is not None]
    mistaken = []
    for module in modules:
        one = copy(config)
        one.target_modules, one.target_parameters = {module}, None
        for key in patterns:  # the conversion changes them
            setattr(one, key, dict(getattr(config, key)))
        try:
            convert_peft_config_for_transformers(one, network, None)
        except ValueError:  # it names only one of two modules that became one stack
            mistaken.append(module)
        else:
            mistaken += [module] if module not in one.target_modules else []
    settings: dict[str, Any] = {"target_modules": [module for module in modules if module not in mistaken]}
    if named := [*parameters, *(f"{module}.weight" for module in mistaken)]:
        settings["target_parameters"] = named
    if mistaken:
        settings |= {key: of_weights(getattr(config, key)) for key in patterns}
    return settings


def of_weights(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """A `rank_pattern` or `alpha_pattern` that also matches modules that are named by their weights."""
    return {**pattern, **{rf"({name})\.weight": value for name, value in pattern.items()}}


def from_peft(config: Any, network: nn.Module) -> None:
    """Undo `for_peft` in a configuration that was read from a file: weights of linear modules are modules again.

    Weights of routers stay weights. PEFT's own `all-linear` names them, because they were linear modules in older versions of
    transformers.
    """
    named = getattr(config, "target_parameters", None) or ()
    modules = {
        name.removesuffix(".weight")
        for name in named
        if name.endswith(".weight") and _is_linear(name.removesuffix(".weight"), network)
    }
    if modules and not isinstance(config.target_modules, str):
        config.target_modules = {*(config.target_modules or ()), *modules}
        config.target_parameters = [
            name for name in named if name.removesuffix(".weight") not in modules
        ] or None


def _is_linear(name: str, network: nn.Module) -> bool:
    """Whether the modules whose names end with `name` are linear, apart from adapters on them."""
    from transformers.pytorch_utils import Conv1D

    found = [
        getattr(module, "base_layer", module)
        for full, module in network.named_modules()
        if f".{full}".endswith(f".{name}")
    ]
    return bool(found) and all(isinstance(module, nn.Linear | Conv1D) for module in found)
