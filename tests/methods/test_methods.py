"""Every tag of the method union has its module."""

from __future__ import annotations

from typing import get_args

import pytest

from tailor.methods import load_method
from tailor.methods.reference import AdapterOff
from tailor.spec.methods.registry import METHODS


@pytest.mark.parametrize("spec", list(METHODS))
def test_every_method_has_its_module(spec: type) -> None:
    (name,) = get_args(spec.model_fields["name"].annotation)  # type: ignore[attr-defined]
    method = load_method(spec(name=name), AdapterOff())
    assert {"denominator", "read", "prepass", "loss", "evaluate", "metrics"} <= set(dir(method))
