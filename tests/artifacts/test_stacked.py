"""Adapters on stacks of experts are found in their base, or the error says what does not fit."""

from __future__ import annotations

import pytest

from tailor.artifacts import stacked
from tailor.errors import ModelError
from tailor.models.experts.stacks import Stack


def test_a_stack_of_other_experts_is_named() -> None:
    config = {"r": 2, "target_parameters": ["experts.down_proj"]}
    stack = Stack("mlp.experts", "down_proj", (4, 8, 8), transposed=False)
    found = stacked.identify("mlp.experts", {"mlp.experts"}, 8, config, [stack], "here")
    assert found == ("mlp.experts.down_proj", 4, False)
    with pytest.raises(ModelError, match="has 4 experts, and the adapter of them 7 rows"):
        stacked.identify("mlp.experts", {"mlp.experts"}, 7, config, [stack], "here")
    with pytest.raises(ModelError, match=r"adapts 1 tensors of mlp\.experts, the base has 0"):
        stacked.identify("mlp.experts", {"mlp.experts"}, 8, config, [], "here")
