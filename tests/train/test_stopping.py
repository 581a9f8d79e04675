"""A run that is asked to stop saves a checkpoint; resumed from it, it equals a run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.runs.log import before
from tailor.store import Store, run_folder
from tailor.train import checkpoint, loop
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.slow

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"adapter": {**LORA, "dropout": 0.1}},
    "save": {"every": 4, "keep": 9, "best": True},
    "evaluate": {"every": 3},
}
MEASURED = ("train", "evaluation")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("stopping")
    tokens = make_store(folder / "tokens", [20, 33, 41, 25] * 9, evaluation=[20, 30, 25, 31])
    return tiny_llama(folder / "model"), tokens


def records(*hosts: PlainHost) -> list[dict[str, Any]]:
    timed = ("data_seconds", "step_seconds", "tokens_per_second", "supervised_tokens_per_second")
    return [
        {key: value for key, value in record.items() if key not in (*timed, "peak_memory_bytes")}
        for host in hosts
        for record in host.records
        if record["kind"] in MEASURED
    ]


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(made: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlainHost]:
    run, host = tmp_path_factory.mktemp("whole"), PlainHost()
    assert loop.run(make_plan(*made, run, **SECTIONS), host) == "finished"
    return run, host


@pytest.mark.parametrize(
    ("asked", "stops"),
    [(1, 2), (2, 3), (3, 3), (6, 6)],
    ids=["between evaluations", "before an evaluation", "in an evaluation", "in the last evaluation"],
)
def test_it_resumes_from_the_step_after_which_it_stopped(
    made: tuple[Path, Any], whole: tuple[Path, PlainHost], tmp_path: Path, asked: int, stops: int
) -> None:
    plan = make_plan(*made, tmp_path, **SECTIONS)
    first = PlainHost(stop_after=asked)
    assert loop.run(plan, first) == "stopped"
    assert run_folder.checkpoints(Store(plan.run_url))[-1] == run_folder.checkpoint_name(stops)
    assert first.records[-1]["kind"] == "checkpoint", "nothing is reported after the checkpoint"
    assert before(first.records, stops) == first.records
    again = PlainHost(resume_from=plan.run_url)
    assert loop.run(plan, again) == "finished"
    assert records(first, again) == records(whole[1])
    assert adapter(tmp_path) == adapter(whole[0])
    assert again.of("artifact")[0]["made_from"] == whole[1].of("artifact")[0]["made_from"]


def test_the_best_step_is_reported_if_only_the_evaluation_after_the_resume_found_it(
    made: tuple[Path, Any], tmp_path: Path
) -> None:
    plan = make_plan(*made, tmp_path, **SECTIONS, optim={"learning_rate": 1e-2})
    first = PlainHost(stop_after=6)
    loop.run(plan, first)
    again = PlainHost(resume_from=plan.run_url)
    loop.run(plan, again)
    before, last = (host.of("evaluation")[-1]["loss"] for host in (first, again))
    assert last < before, "the control: the last is the best"
    (artifact,) = again.of("artifact")
    assert artifact["made_from"] == 6


def test_control_without_the_flag_the_evaluation_is_lost(
    made: tuple[Path, Any], whole: tuple[Path, PlainHost], tmp_path: Path
) -> None:
    plan = make_plan(*made, tmp_path, **SECTIONS)
    first = PlainHost(stop_after=3)
    loop.run(plan, first)
    load = checkpoint.load

    def forgetting(*arguments: Any) -> checkpoint.State:
        state = load(*arguments)
        state.evaluated = True
        return state

    again = PlainHost(resume_from=plan.run_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", forgetting)
        loop.run(plan, again)
    assert records(first, again) != records(whole[1])


def stopped_on_one(host: PlainHost, plan: Any) -> tuple[str, list[int]]:
    """Only rank 1 is asked."""
    host.stop_after = None
    host.stopping = lambda: host.rank == 1  # type: ignore[method-assign]
    return loop.run(plan, host), [record["step"] for record in host.of("train")]


def test_all_workers_stop_when_one_is_asked_to(made: tuple[Path, Any], tmp_path: Path) -> None:
    plan = make_plan(*made, tmp_path, **SECTIONS, scale={"workers": 2})
    ended = run_distributed(stopped_on_one, plan)
    assert ended == [("stopped", [1]), ("stopped", [])]
    assert run_folder.checkpoints(Store(plan.run_url)) == [run_folder.checkpoint_name(1)]
