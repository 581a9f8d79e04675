"""Training methods, one file each: the loss, and the count that the loss is averaged over."""

from __future__ import annotations

from importlib import import_module

from tailor.methods.base import LossSum, Method
from tailor.methods.reference import Reference
from tailor.spec.methods.base import MethodSection


def load_method(spec: MethodSection, reference: Reference | None = None) -> Method:
    """Build the method that a recipe's `method` section names, from the section's `implementation` (module:function)."""
    module, _, build = spec.implementation.partition(":")
    method: Method = getattr(import_module(module), build)(spec, reference)
    return method


__all__ = ["LossSum", "Method", "Reference", "load_method"]
