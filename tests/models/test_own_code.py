"""A model whose code is in its own folder: loaded wherever the recipe trusts it, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.models.load import load_for_training, skeleton
from tailor.spec.model import Model
from tests.helpers.models import tiny_llama, with_own_code

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {
    "precision": "fp32",
    "frozen_dtype": "float32",
    "activation_checkpointing": 0,
    "seed": 0,
}
LOAD: dict[str, Any] = {**KEYS, "device": CPU, "pack": False, "static_shapes": False}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return with_own_code(tiny_llama(tmp_path / "base"))


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_a_trusted_model_is_loaded_or_initialized(base: Path, init: str) -> None:
    spec = Model.model_validate({"path": str(base), "init": init, "trust_remote_code": True})
    assert type(load_for_training(spec, **LOAD).base).__name__ == "OwnForCausalLM"


def test_a_trusted_model_is_built_without_weights(base: Path) -> None:
    """As every worker does where the weights are shared out."""
    network = skeleton(Model(path=str(base), trust_remote_code=True), **KEYS)
    assert type(network).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_its_code_does_not_run_without_trust(base: Path, init: str) -> None:
    with pytest.raises(
        ModelError, match="comes with its own code, which is not run unless you trust it"
    ) as caught:
        load_for_training(Model.model_validate({"path": str(base), "init": init}), **LOAD)
    assert "set model.trust_remote_code: true" in str(caught.value.hint)
