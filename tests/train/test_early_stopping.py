"""`train.early_stopping`: training ends at the right evaluation, also when it is killed and resumed on the way there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import TrainingError
from tailor.plan import Plan
from tailor.spec.train import EarlyStopping
from tailor.store import Store, run_folder
from tailor.train import checkpoint, loop
from tailor.train.checkpoint import State
from tailor.train.early_stopping import count
from tailor.train.session import Session
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"adapter": LORA},
    "save": {"every": 50, "keep": 9},
    "evaluate": {"every": 1},
    "optim": {"learning_rate": 1e-2},  # so large that the evaluation loss grows after a few steps
}
STEPS = 14
Made = tuple[Path, Any]


def keras(values: list[float], patience: int, min_delta: float, *, falls: bool) -> int | None:
    """Number of evaluations after which Keras' EarlyStopping ends training; None if it does not."""
    best, wait = float("inf") if falls else -float("inf"), 0
    for number, value in enumerate(values, 1):
        wait += 1
        if value < best - min_delta if falls else value > best + min_delta:
            best, wait = value, 0
        elif wait >= patience:
            return number
    return None


NAN = float("nan")
VALUES = [
    [5.0, 4.0, 3.0, 3.5, 3.2, 2.9, 3.1, 3.0, 2.95, 4.0],
    [1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94],
    [3.0, 3.0, 3.0, 3.0],
    [3.0, NAN, 2.0, NAN, NAN, NAN, 1.0],
    [9.0, 8.0, 7.0, 6.0],
]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (2, 0.0), (3, 0.0), (2, 0.05)])
@pytest.mark.parametrize("metric", ["loss", "perplexity", "token_accuracy", "ndcg@10"])
def test_it_counts_as_keras_does(values: list[float], patience: int, min_delta: float, metric: str) -> None:
    falls = metric in ("loss", "perplexity")
    spec, state, stopped = EarlyStopping(patience=patience, metric=metric, min_delta=min_delta), State(), None
    for number, value in enumerate(values, 1):
        count(spec, state, value)
        if stopped is None and state.unimproved >= patience:
            stopped = number
    assert stopped == keras(values, patience, min_delta, falls=falls)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("early")
    tokens = make_store(folder / "tokens", [20, 33, 41, 25] * 2, evaluation=[20, 30])
    return tiny_llama(folder / "model"), tokens


def plan_of(made: Made, run: Path, stopping: dict[str, Any] | None, **sections: Any) -> Plan:
    train = {"steps": STEPS} | ({} if stopping is None else {"early_stopping": stopping})
    return make_plan(*made, run, **{**SECTIONS, "train": train, **sections})


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def state_of(run: Path) -> dict[str, Any]:
    newest = run_folder.latest_checkpoint(Store(str(run)))
    assert newest is not None
    found: dict[str, Any] = json.loads(Path(newest, "state.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Evaluation losses of a run that never stops early."""
    host = PlainHost()
    loop.run(plan_of(made, tmp_path_factory.mktemp("whole"), None), host)
    return [record["loss"] for record in host.of("evaluation")]


@pytest.fixture(scope="module")
def early(
    made: Made, whole: list[float], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PlainHost, int]:
    run, host = tmp_path_factory.mktemp("stopped"), PlainHost()
    assert loop.run(plan_of(made, run, {"patience": 2}), host) == "finished"
    last = keras(whole, 2, 0.0, falls=True)
    assert last is not None
    assert 4 < last < STEPS, "control: the losses grow in time"
    return run, host, last


def test_it_ends_with_a_checkpoint_and_the_artifact(
    early: tuple[Path, PlainHost, int], whole: list[float]
) -> None:
    run, host, last = early
    assert [record["loss"] for record in host.of("evaluation")] == whole[:last]
    assert len(host.of("train")) == last
    assert run_folder.checkpoints(Store(str(run))) == [run_folder.checkpoint_name(last)]
    assert host.of("artifact")[0]["made_from"] == last
    assert any(f"stopping early at step {last} of {STEPS}" in one["message"] for one in host.of("status"))


@pytest.mark.parametrize("before", [2, 1, 0], ids=["two before", "before the last", "at the end"])
def test_stopped_and_resumed_it_ends_at_the_same_step(
    made: Made, early: tuple[Path, PlainHost, int], tmp_path: Path, before: int
) -> None:
    run, _, last = early
    plan = plan_of(made, tmp_path, {"patience": 2})
    first = PlainHost(stop_after=last - before)
    loop.run(plan, first)
    again = PlainHost(resume_from=str(tmp_path))
    assert loop.run(plan, again) == "finished"
    assert len(first.of("train")) + len(again.of("train")) == last
    assert adapter(tmp_path) == adapter(run)
    if before:  # stopped in the last evaluation, the last checkpoint was written before it
        assert state_of(tmp_path) == state_of(run)
        assert state_of(run)["stopped_early"]


def test_control_without_the_count_of_the_checkpoint_it_ends_later(
    made: Made, early: tuple[Path, PlainHost, int], tmp_path: Path
) -> None:
    plan = plan_of(made, tmp_path, {"patience": 2})
    loop.run(plan, PlainHost(stop_after=early[2] - 1))
    load = checkpoint.load

    def forgetting(*arguments: Any) -> State:
        return replace(load(*arguments), unimproved=0, watched_best=None)

    again = PlainHost(resume_from=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", forgetting)
        loop.run(plan, again)
    assert again.of("train")[-1]["step"] > early[2]


def test_a_run_that_ended_early_makes_no_step_when_its_artifact_is_lost(
    made: Made, early: tuple[Path, PlainHost, int]
) -> None:
    run = early[0]
    before = adapter(run)
    shutil.rmtree(run / "adapter")
    again = PlainHost(resume_from=str(run))
    assert loop.run(plan_of(made, run, {"patience": 2}), again) == "finished"
    assert not again.of("train")
    assert adapter(run) == before


def test_a_changed_recipe_starts_to_count(
    made: Made, early: tuple[Path, PlainHost, int], tmp_path: Path
) -> None:
    start = run_folder.latest_checkpoint(Store(str(early[0])))
    plan = replace(plan_of(made, tmp_path, {"patience": 9}), resume_from=start)
    host = PlainHost(resume_from=str(early[0]))
    loop.run(plan, host)
    assert host.of("train")[0]["step"] == early[2] + 1
    assert host.of("train")[-1]["step"] == STEPS


def test_the_best_checkpoint_is_the_artifact(made: Made, whole: list[float], tmp_path: Path) -> None:
    host = PlainHost()
    save = {"every": 50, "keep": 1, "best": True}
    loop.run(plan_of(made, tmp_path, {"patience": 2}, save=save), host)
    best = whole.index(min(whole[: len(host.of("train"))])) + 1
    assert host.of("artifact")[0]["made_from"] == best < len(host.of("train"))


def test_another_metric_and_an_unknown_one(made: Made, tmp_path: Path) -> None:
    host = PlainHost()
    loop.run(plan_of(made, tmp_path / "one", {"patience": 1, "metric": "token_accuracy"}), host)
    values = [record["token_accuracy"] for record in host.of("evaluation")]
    assert len(values) == keras(values, 1, 0.0, falls=False)
    with pytest.raises(
        TrainingError, match=r"train\.early_stopping\.metric: this evaluation has no metric bleu"
    ):
        loop.run(plan_of(made, tmp_path / "two", {"metric": "bleu"}), PlainHost())


def falling(session: Session, when: str, step: int) -> Mapping[str, float] | None:
    """A probe whose metric only rank 0 knows."""
    return {"ndcg@10": 1 / (step + 1)} if session.host.rank == 0 and when == "evaluation" else None


def probed(host: PlainHost, plan: Plan) -> int:
    loop.run(plan, host, [falling])
    return sum(1 for record in host.of("train")) if host.rank == 0 else -1


@pytest.mark.slow
def test_all_workers_end_at_the_same_step(made: Made, tmp_path: Path) -> None:
    stopping = {"patience": 3, "metric": "ndcg@10"}
    plan = plan_of(
        made, tmp_path, stopping, scale={"workers": 2}, train={"steps": STEPS, "early_stopping": stopping}
    )
    assert run_distributed(probed, plan) == [4, -1]
    assert state_of(tmp_path)["stopped_early"]
