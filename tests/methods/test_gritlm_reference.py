"""Five optimizer steps equal those of the published GritLM code, in each attention mode, from text rows to the loss.

`benchmarks/parity/gritlm_reference.py` made the values with the published collator, training model, losses and GradCache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.data.facts import of_split
from tailor.data.grit_batches import GritBatch
from tailor.data.split import Split
from tailor.encode.prepare import prepare_all
from tailor.methods.gritlm import Gritlm
from tailor.models import prefix_lm
from tailor.plan.batches import BatchSpec
from tailor.spec.data import Data
from tailor.spec.methods.gritlm import Gritlm as Spec
from tailor.spec.model import Model
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.passes import OneWorker, micro_batches_of

PARITY = Path(__file__).parents[2] / "benchmarks" / "parity"
VALUES: dict[str, Any] = json.loads((PARITY / "gritlm_values.json").read_text())
TOLERANCE = 2e-5
"""Relative, of a loss and of the norm of a gradient."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def split(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("rows")
    rows = json.loads((PARITY / "gritlm_rows.json").read_text())
    texts = [{"text": turns} for turns in rows["generative"]]
    sources = []
    for name, some in (("embedding", rows["embedding"]), ("generative", texts)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
        sources.append({"path": str(path), "format": {"embedding": "gritlm", "generative": "turns"}[name]})
    data = Data.model_validate({"train": sources, "template": "gritlm", "max_length": 512})
    prepared = prepare_all(data, Model(path=str(model)), Spec(name="gritlm"), str(folder / "tokens"))
    return prepared.tokens.split("train")


def steps(model: Path, split: Split, **keys: Any) -> list[dict[str, float]]:
    """The losses and the gradient norms of tailor's method."""
    count, examples = VALUES["queries"], VALUES["examples"]
    spec = Spec(
        name="gritlm", temperature=VALUES["temperature"], **{"generative_normalization": "mixed", **keys}
    )
    trained = load_model(
        Model(path=str(model)),
    )
    if spec.prefix_lm:
        prefix_lm.enable(trained.base)
    trained.train()
    method, starts = Gritlm(spec), np.flatnonzero(split.position == 0)
    rows = starts[split.source[starts] == 0]
    texts = starts[split.source[starts] == 1] if spec.generates else starts[:0]
    batches = of_split(split, BatchSpec(seed=0, max_length=512, pack=False, streams=spec.streams))
    optimizer = torch.optim.SGD(trained.parameters(), lr=VALUES["learning_rate"])
    found = []
    for step in range(len(VALUES["cases"]["bb"]["steps"])):
        context = OneWorker(trained, micro_batch_size=examples)
        groups = [rows[(step * count + at) % len(rows)] + np.arange(3) for at in range(count)]
        chosen = [
            int(texts[(step * examples + at) % len(texts)]) for at in range(examples if len(texts) else 0)
        ]
        chosen.sort(key=lambda example: -int(split.lengths[example]))
        batch = GritBatch(split, np.array(groups), chosen, first=spec.streams.first)
        batches.batch = lambda _, batch=batch: batch  # type: ignore[method-assign, misc]
        work = micro_batches_of(method, context, batches, split)
        method.backward(context, batches, batch, work, 0.0)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        metrics = method.metrics(context.sums, 1)
        one = {"embedding": metrics["embedding_loss"], "gradient_norm": float(norm)}
        if len(texts):
            one["generative"] = spec.generative_weight * metrics["generative_loss"]
        found.append(one)
    return found


@pytest.mark.parametrize("case", VALUES["cases"])
def test_the_losses_of_the_published_code(model: Path, split: Split, case: str) -> None:
    published = VALUES["cases"][case]
    assert len(published["steps"]) == 5
    for ours, theirs in zip(steps(model, split, **published["method"]), published["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


def test_control_the_modes_differ() -> None:
    """Each case has other losses than every other one, by far more than the tolerance."""
    curves = {
        name: np.array([one["embedding"] for one in case["steps"]]) for name, case in VALUES["cases"].items()
    }
    names = list(curves)
    for at, name in enumerate(names):
        for other in names[:at]:
            assert np.abs(curves[name] - curves[other]).max() > 100 * TOLERANCE, (name, other)
