"""Training with skipped positions: micro-batches, packing and a kill do not change the curve, and evaluations are plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.cli.plan import lines
from tailor.errors import ModelError
from tailor.plan import Plan
from tailor.train import loop, session
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import CPU, make_plan
from tests.helpers.stores import make_store
from tests.train.test_checkpoint import Stopped, StoppingHost

Made = tuple[Path, Any]
MODEL = {"rope": {"name": "linear", "factor": 4, "original_length": 128}}
POSE: dict[str, Any] = {"pose": {"chunks": 3}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pose")
    tokens = make_store(folder / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30])
    return tiny_llama(folder / "model", max_position_embeddings=128), tokens


def plan(made: Made, run: Path, *, pack: bool = True, **train: Any) -> Plan:
    sections = {"data": {"pack": pack}, "model": MODEL, "train": {**POSE, **train}}
    return make_plan(*made, run, **sections, save={"every": 2}, evaluate={"every": 6})


def curve(made: Plan) -> tuple[list[float], float]:
    """Losses of the steps, and the loss of the evaluation at the end."""
    host = PlainHost()
    loop.run(made, host)
    return host.losses(), host.of("evaluation")[-1]["loss"]


@pytest.fixture(scope="module")
def whole(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return curve(plan(made, tmp_path_factory.mktemp("whole")))[0]


def test_a_killed_run_resumes_exactly(made: Made, whole: list[float], tmp_path: Path) -> None:
    again = plan(made, tmp_path / "run")
    with pytest.raises(Stopped):
        loop.run(again, killed := StoppingHost())
    rest = PlainHost(resume_from=again.run_url)
    loop.run(again, rest)
    assert [*killed.losses()[:4], *rest.losses()] == whole


def test_micro_batches_do_not_change_the_curve(made: Made, whole: list[float], tmp_path: Path) -> None:
    four = plan(made, tmp_path / "four", micro_batch_size=4)
    assert curve(four)[0] == pytest.approx(whole, abs=1e-5)
    assert dict(lines(four, CPU))["positions"] == "training documents cover 512 positions, in 3 chunks (PoSE)"


def test_skips_change_training_and_not_evaluation(made: Made, whole: list[float], tmp_path: Path) -> None:
    losses = curve(plan(made, tmp_path / "off", pose=None))[0]
    assert np.abs(np.subtract(losses, whole)).min() > 1e-5
    evaluations = []
    for name, train in (("skipped", POSE), ("plain", {})):
        sections = {"model": MODEL, "train": {**train, "steps": 1}, "evaluate": {"every": 1}}
        evaluations.append(
            curve(make_plan(*made, tmp_path / name, **sections, optim={"learning_rate": 1e-30}))
        )
    assert evaluations[0][1] == evaluations[1][1]
    assert evaluations[0][0] != evaluations[1][0], "control"


def test_rows_without_packs_have_them_under_every_attention(made: Made, tmp_path: Path) -> None:
    found = []
    for attention in ("auto", "sdpa"):
        model = {**MODEL, "attention": attention}
        sections: dict[str, Any] = {"model": model, "data": {"pack": False}, "train": {**POSE, "steps": 2}}
        found.append(curve(make_plan(*made, tmp_path / attention, **sections))[0])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_packed_rows_that_transformers_would_cut_are_refused(made: Made, tmp_path: Path) -> None:
    packed = make_plan(*made, tmp_path, model={**MODEL, "attention": "sdpa"}, train=POSE)
    with pytest.raises(
        ModelError, match=r"train\.pose: packed documents of LlamaForCausalLM are distinguished"
    ):
        loop.run(packed, PlainHost())


def test_a_model_without_positions_is_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(session.probe, "positions_have_effect", lambda *_: torch.tensor(False))
    with pytest.raises(ModelError, match=r"train\.pose: the position ids of LlamaForCausalLM have no effect"):
        loop.run(plan(made, tmp_path), PlainHost())
