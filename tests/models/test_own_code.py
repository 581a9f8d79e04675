"""A model whose code is in its own folder: loaded wherever the recipe trusts it, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.errors import ModelError
from tailor.models.load import skeleton
from tailor.spec.model import Model
from tests.helpers.models import load_model, tiny_llama, with_own_code

KEYS: dict[str, Any] = {
    "precision": "fp32",
    "frozen_dtype": "float32",
    "activation_checkpointing": 0,
    "seed": 0,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return with_own_code(tiny_llama(tmp_path / "base"))


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_a_trusted_model_is_loaded_or_initialized(base: Path, init: str) -> None:
    spec = Model.model_validate({"path": str(base), "init": init, "trust_remote_code": True})
    assert type(load_model(spec).base).__name__ == "OwnForCausalLM"


def test_a_trusted_model_is_built_without_weights(base: Path) -> None:
    """As every worker does where the weights are shared out."""
    network = skeleton(Model(path=str(base), trust_remote_code=True), **KEYS)
    assert type(network).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_its_code_does_not_run_without_trust(base: Path, init: str) -> None:
    with pytest.raises(
        ModelError, match="comes with its own code, which is not run unless you trust it"
    ) as caught:
        load_model(Model.model_validate({"path": str(base), "init": init}))
    assert "set model.trust_remote_code: true" in str(caught.value.hint)
