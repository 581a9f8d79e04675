"""Quantizes stacks of experts while transformers loads a model, one at a time, as it quantizes linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import nn

from tailor.models.experts.low_rank import is_grouped
from tailor.models.experts.packed import pack
from tailor.models.experts.stacks import Stack, stacks
from tailor.spec.model import Quantize


def quantizable(network: nn.Module) -> list[Stack]:
    """The stacks that `model.quantize` quantizes: those of classes whose products can be computed here."""
    return [stack for stack in stacks(network) if is_grouped(network.get_submodule(stack.module))]


@contextmanager
def quantizing(spec: Quantize | None, bare: Callable[[], nn.Module]) -> Iterator[None]:
    """Context in which transformers' loading also quantizes the stacks of a network. bare: makes it on the meta device.

    transformers has no way to choose a quantizer for one call, but a table from which it takes its class.
    """
    chosen = frozenset(stack.name for stack in quantizable(bare())) if spec is not None else frozenset()
    if spec is None or not chosen:
        yield
        return
    from transformers.quantizers import auto

    key = "bitsandbytes_8bit" if spec.type == "int8" else "bitsandbytes_4bit"
    quantizer = _with_stacks(auto.AUTO_QUANTIZER_MAPPING[key], spec, chosen)
    with mock.patch.dict(auto.AUTO_QUANTIZER_MAPPING, {key: quantizer}):
        yield


def _with_stacks(quantizer: Any, spec: Quantize, chosen: frozenset[str]) -> Any:
    """A subclass of transformers' quantizer that also quantizes the stacks."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.quantizers_utils import get_module_from_name

    class Operation(ConversionOps):
        def __init__(self, of_linear: Any) -> None:
            self.of_linear = of_linear

        def convert(self, input_dict: dict[str, Any], *args: Any, model: Any = None, **others: Any) -> Any:
            (name,) = input_dict
            if name not in chosen:
                return self.of_linear.convert(input_dict, *args, model=model, **others)
            value = input_dict[name]
            module, parameter = get_module_from_name(model, name)
            stack = value[0] if isinstance(value, list) else value
            return {name: pack(module, parameter, stack, spec)}

    class Quantizer(quantizer):  # type: ignore[misc]
        def param_needs_quantization(self, model: Any, param_name: str, **others: Any) -> bool:
            return param_name in chosen or super().param_needs_quantization(model, param_name, **others)

        def get_quantize_ops(self) -> Operation:
            return Operation(super().get_quantize_ops())

    return Quantizer
