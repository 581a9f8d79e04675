"""The registry of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailor.registry import Registry, check_section
from tailor.spec.methods.base import MethodSection

METHODS: Registry[type[MethodSection]] = Registry(
    "tailor.methods",
    {
        "sft": "tailor.spec.methods.sft:Sft",
        "pretrain": "tailor.spec.methods.pretrain:Pretrain",
        "dpo": "tailor.spec.methods.dpo:Dpo",
        "kto": "tailor.spec.methods.kto:Kto",
        "gritlm": "tailor.spec.methods.gritlm:Gritlm",
        "rerank": "tailor.spec.methods.rerank:Rerank",
    },
)


def method_class(name: str) -> type[MethodSection]:
    """The section of a registered method. Raises ExtensionError when another package registers something else."""
    found = METHODS.get(name)
    check_section(METHODS.group, name, found, MethodSection, ("implementation", "reads"))
    return found


def method_of(values: Mapping[str, Any]) -> MethodSection:
    """The section from its plain values, as in a run's plan. Raises KeyError for a method that is not installed."""
    return METHODS.get(values["name"]).model_validate(values)


def token_methods() -> list[str]:
    """Names of the methods whose loss is a sum over tokens."""
    return [name for name in METHODS.names() if METHODS.get(name).token_loss]
