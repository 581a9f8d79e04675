"""One file per method: what its loss is, and what the loss is averaged over."""

from __future__ import annotations

from importlib import import_module

from tailor.methods.base import Method, Summed
from tailor.methods.reference import Reference
from tailor.spec.base import Section


def load_method(spec: Section, reference: Reference | None = None) -> Method:
    """The method of a spec: `spec.name` is its module, which has a `build(spec, reference)`."""
    module = import_module(f"tailor.methods.{spec.name}")  # type: ignore[attr-defined]
    method: Method = module.build(spec, reference)
    return method


__all__ = ["Method", "Reference", "Summed", "load_method"]
