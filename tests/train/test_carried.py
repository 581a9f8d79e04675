"""A run that continues another one keeps its best checkpoint and where a divergence reloads from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailor.errors import TrainingError
from tailor.plan import Plan
from tailor.store import Store, run_folder
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"adapter": LORA},
    "save": {"every": 4, "keep": 1, "best": True},
    "evaluate": {"every": 2},
    "optim": {"learning_rate": 5e-2},  # so large that the evaluation loss soon grows
}
LENGTHS, EVALUATION = [20, 33, 41, 25] * 2, [20, 30]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("carried")
    return tiny_llama(folder / "model"), make_store(folder / "tokens", LENGTHS, evaluation=EVALUATION)


def plan_of(made: tuple[Path, Any], run: Path, steps: int, **sections: Any) -> Plan:
    return make_plan(*made, run, **{**SECTIONS, "train": {"steps": steps}, **sections})


def continued(plan: Plan, source: Path) -> Plan:
    """The plan of a run that `save.resume` continues with a changed recipe."""
    return replace(plan, resume_from=run_folder.latest_checkpoint(Store(str(source))))


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def messages(host: PlainHost) -> str:
    return "\n".join(record["message"] for record in host.of("status"))


@pytest.fixture(scope="module")
def whole(made: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder and the best step of a run of 12 steps that never stops."""
    run, host = tmp_path_factory.mktemp("whole"), PlainHost()
    loop.run(plan_of(made, run, 12), host)
    losses = {record["step"]: record["loss"] for record in host.evaluations()}
    best = min(losses, key=losses.__getitem__)
    assert best < 8 < 12, "control: the best step is one of the first run"
    assert host.of("artifact")[0]["made_from"] == best
    return run, best


@pytest.mark.parametrize("moves", [False, True], ids=["same folder", "new folder"])
def test_a_longer_run_keeps_the_best_step(
    made: tuple[Path, Any], whole: tuple[Path, int], tmp_path: Path, moves: bool
) -> None:
    first, second = tmp_path / "first", tmp_path / ("second" if moves else "first")
    loop.run(plan_of(made, first, 8), PlainHost())
    plan = continued(plan_of(made, second, 12), first)
    stopped, host = PlainHost(resume_from=str(first), stop_after=9), PlainHost(resume_from=str(second))
    assert loop.run(plan, stopped) == "stopped"  # and once more from a checkpoint of its own
    loop.run(plan, host)
    assert host.of("artifact")[0]["made_from"] == whole[1]
    assert adapter(second) == adapter(whole[0])
    assert run_folder.checkpoint_name(whole[1]) in run_folder.checkpoints(Store(str(first)))
    assert f"the best evaluation so far is that of step {whole[1]}" in messages(stopped)


def test_other_evaluation_rows_start_over_and_delete_nothing(
    made: tuple[Path, Any], whole: tuple[Path, int], tmp_path: Path
) -> None:
    loop.run(plan_of(made, tmp_path / "run", 8), PlainHost())
    other = made[0], make_store(tmp_path / "tokens", LENGTHS, evaluation=[31, 12])
    host = PlainHost(resume_from=str(tmp_path / "run"))
    loop.run(continued(plan_of(other, tmp_path / "run", 12), tmp_path / "run"), host)
    assert "starts over" in messages(host)
    assert "the evaluation rows have changed" in messages(host)
    losses = {record["step"]: record["loss"] for record in host.evaluations()}
    assert host.of("artifact")[0]["made_from"] == min(losses, key=losses.__getitem__) > 8
    assert run_folder.checkpoint_name(whole[1]) in run_folder.checkpoints(Store(str(tmp_path / "run")))


def test_an_evaluation_at_the_resumed_step_uses_the_other_runs_checkpoint(
    made: tuple[Path, Any], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    stopped = PlainHost(stop_after=2)
    assert loop.run(plan_of(made, first, 8, evaluate={"every": 2}), stopped) == "stopped"
    assert not stopped.evaluations(), "control: the evaluation of the last step is left to the next run"
    host = PlainHost(resume_from=str(first))
    loop.run(continued(plan_of(made, second, 6, optim={"learning_rate": 1.0}), first), host)
    assert host.of("artifact")[0]["made_from"] == 2
    assert len(host.evaluations()) == 3


def test_a_best_checkpoint_that_is_gone_starts_over(made: tuple[Path, Any], tmp_path: Path) -> None:
    import shutil

    first, second = tmp_path / "first", tmp_path / "second"
    loop.run(plan_of(made, first, 8), PlainHost())
    state = json.loads((first / "checkpoints" / run_folder.checkpoint_name(8) / "state.json").read_text())
    shutil.rmtree(first / "checkpoints" / run_folder.checkpoint_name(state["best_step"]))
    host = PlainHost(resume_from=str(first))
    loop.run(continued(plan_of(made, second, 10), first), host)
    assert "it is missing" in messages(host)
    assert host.of("artifact")[0]["made_from"] == 10


def test_a_reload_does_not_depend_on_a_stop(
    made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailor.train.step import StepRunner
    from tailor.train.strategy.ddp import DataParallel

    first = tmp_path / "first"
    sections: dict[str, Any] = {
        "evaluate": {},
        "save": {"every": 4, "keep": 9},
        "optim": {"learning_rate": 1e-3},
    }
    loop.run(plan_of(made, first, 4, **sections), PlainHost())
    now, step, norm = [0], StepRunner.step, DataParallel.gradient_norm

    def stepping(self: Any, number: int, work: Any) -> Any:
        now[0] = number + 1
        return step(self, number, work)

    monkeypatch.setattr(StepRunner, "step", stepping)
    monkeypatch.setattr(DataParallel, "gradient_norm", lambda self: 1e9 if now[0] == 7 else norm(self))
    train = {"steps": 8, "divergence": {"grad_norm": 1e6, "action": "reload"}}

    def losses(name: str, *stops: int | None) -> list[float]:
        plan = continued(plan_of(made, tmp_path / name, 8, **{**sections, "train": train}), first)
        found: list[float] = []
        for number, stop in enumerate(stops):
            host = PlainHost(resume_from=str(tmp_path / name if number else first), stop_after=stop)
            loop.run(plan, host)
            found += host.losses()
        assert "the updates since step-00000004 are discarded" in messages(host)
        return found

    assert losses("stopped", 5, None) == losses("not stopped", None)
    with pytest.raises(TrainingError, match="there is no checkpoint yet"):
        loop.run(plan_of(made, tmp_path / "new", 8, **{**sections, "save": {}, "train": train}), PlainHost())
