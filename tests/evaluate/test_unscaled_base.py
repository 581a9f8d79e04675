"""`compare: [unscaled_base]`: the base of an adapter without the run's `model.rope`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tailor.errors import ModelError
from tailor.evaluate.batches import Worker
from tailor.evaluate.models import evaluated_models, find_model
from tailor.spec.suite import Decoding, Suite
from tests.helpers.plans import LORA
from tests.helpers.trained_runs import finished_run

TOKENS = torch.tensor([[9, 41, 77, 130, 12, 200, 33, 8] * 12])


def test_it_computes_as_before_the_scaling(tmp_path: Path) -> None:
    rope = {"name": "linear", "factor": 4, "original_length": 512}
    run = finished_run(tmp_path, {"adapter": LORA, "rope": rope}, max_position_embeddings=512)
    models = evaluated_models(find_model(str(run)), Suite(compare=["base", "unscaled_base"]))
    assert [model.label for model in models] == ["run", "base", "unscaled_base"]
    assert [model.positions() for model in models] == [2048, 2048, 512]
    assert len({str(model.identity()) for model in models}) == 3
    worker, logits = Worker([model.ref for model in models], Decoding()), {}
    for model in (*models, models[0]):  # the trained model once more, after the others
        with worker.language_model(model.label) as loaded, torch.no_grad():
            found = loaded.loaded.model(TOKENS).logits
        assert torch.equal(found, logits.setdefault(model.label, found))
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        expected = before(TOKENS).logits
    assert (logits["unscaled_base"] - expected).norm() < 1e-6 * expected.norm()
    assert (logits["base"] - expected).norm() > 1e-3 * expected.norm(), "control: positions are divided by 4"


def test_a_run_without_rope_has_none(tmp_path: Path) -> None:
    run = find_model(str(finished_run(tmp_path, {"adapter": LORA})))
    with pytest.raises(ModelError, match=r"unscaled_base: .* was trained without model\.rope"):
        evaluated_models(run, Suite(compare=["unscaled_base"]))
