"""A checkpoint of a run with adapters on experts is read as the adapter that the finished run writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tailor.artifacts.checkpoints import write_adapter
from tailor.models.own_code import NOTHING
from tailor.store import Store
from tests.helpers.mixtures import MIXTURES
from tests.models.experts.test_adapters import CASES, plain_logits, train


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_becomes_the_adapter_of_the_run(tmp_path: Path, name: str) -> None:
    base, made, run = MIXTURES[name].make(tmp_path / "base"), tmp_path / "made", tmp_path / "run"
    train(base, run, router=True)
    write_adapter(made, run / "checkpoints" / "step-00000002", Store(str(run)), NOTHING)
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (made, run / "adapter")]
    first, second = ([*config["modules_to_save"], config["r"], config["task_type"]] for config in configs)
    assert first == second
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (made, run / "adapter"))
    assert found.keys() == expected.keys()
    assert plain_logits(base, made).equal(plain_logits(base, run / "adapter"))
    assert not plain_logits(base, made).equal(plain_logits(base)), "the adapter has an effect"
