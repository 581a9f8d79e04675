"""`method`: what is learned. One section per method, chosen by `name`; another package may register more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tailor.registry import Registry
from tailor.spec.methods.base import MethodSection

METHODS: Registry[type[MethodSection]] = Registry(
    "tailor.methods",
    {
        "sft": "tailor.spec.methods.sft:Sft",
        "pretrain": "tailor.spec.methods.pretrain:Pretrain",
        "dpo": "tailor.spec.methods.dpo:Dpo",
        "kto": "tailor.spec.methods.kto:Kto",
        "gritlm": "tailor.spec.methods.gritlm:Gritlm",
    },
)

if TYPE_CHECKING:
    Method = MethodSection
else:
    Method = Annotated[reduce(or_, METHODS), Field(discriminator="name")]


def method_of(values: Mapping[str, Any]) -> MethodSection:
    """The section from its plain values, as they stand in a run's plan. KeyError for a method that is not installed."""
    return METHODS.get(values["name"]).model_validate(values)


def token_methods() -> list[str]:
    """Names of the methods whose loss is a sum over tokens."""
    return [name for name in METHODS.names() if METHODS.get(name).token_loss]


__all__ = ["METHODS", "Method", "MethodSection", "method_of", "token_methods"]
