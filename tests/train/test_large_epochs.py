"""Training on a split that is batched in windows: a resumed run sees the same batches, and its plan has the steps of the epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tailor.data import blocks, epoch_order
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

LENGTHS = np.random.default_rng(1).integers(6, 40, 90).tolist()
SECTIONS = {
    "model": {"adapter": LORA},
    "data": {"pack": True},
    "train": {"steps": None, "epochs": 2, "batch_size": 6, "micro_batch_size": 3},
}


def losses(place: Path, folder: Path, stops: tuple[int | None, ...] = (None,)) -> list[float]:
    """The losses of a run that is stopped after these steps and resumed."""
    store = make_store(folder / f"tokens-{place.name}", LENGTHS)
    plan = make_plan(folder / "model", store, place, **SECTIONS)
    found = []
    for stop in stops:
        host = PlainHost(stop_after=stop, resume_from=str(place))
        loop.run(plan, host)
        found += host.losses()
    assert len(found) == plan.steps
    return found


def test_a_resumed_run_sees_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(tmp_path / "model")
    listed = losses(tmp_path / "listed", tmp_path)
    for module, name, value in ((epoch_order, "WINDOW", 30), (blocks, "BLOCK", 8), (blocks, "MIN_ROWS", 1)):
        monkeypatch.setattr(module, name, value)
    whole = losses(tmp_path / "whole", tmp_path)
    steps = len(whole)
    assert losses(tmp_path / "resumed", tmp_path, (2, steps // 2 + 1, None)) == whole
    assert whole != listed  # control: another order
    assert abs(steps - len(listed)) <= 4
