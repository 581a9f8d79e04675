"""Training in this process: Ray is not started, every record arrives, and errors have clear messages."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.errors import DataError, TrainingError, WorkerError
from tailor.onray import trainer, worker
from tailor.onray.failures import cause
from tailor.onray.supervisor import DriverContext
from tailor.runs.log import of_kind, read
from tailor.store import Store, run_folder
from tailor.train import loop
from tests.onray.conftest import Make


def fit(plan: Any, recipe: Any, until: int | None = None) -> list[dict[str, Any]]:
    """The published records. `until`: Ctrl-C arrives directly after this step."""
    records: list[dict[str, Any]] = []

    def publish(record: dict[str, Any]) -> None:
        records.append(record)
        if record["kind"] == "train" and record["step"] == until:
            raise KeyboardInterrupt

    trainer.fit(plan, recipe, DriverContext(publish), cluster=None)
    return records


@pytest.mark.parametrize("remote", [False, True])
def test_all_output_is_in_the_run_folder(make: Make, tmp_path: Path, monkeypatch: Any, remote: bool) -> None:
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    url = f"memory://{uuid.uuid4().hex}/run" if remote else str(tmp_path / "run")
    plan, recipe = make(url, save={"every": 2, "keep": 2})
    published = fit(plan, recipe)
    run = Store(url)
    assert [record for record in published if record["kind"] != "started"] == read(run)
    assert [record["step"] for record in of_kind(read(run), "train")] == [1, 2, 3, 4, 5, 6]
    assert all(record["time"] > 1e9 for record in read(run))
    assert run_folder.checkpoints(run) == ["step-00000004", "step-00000006"]
    assert run_folder.artifact(run) == "model"
    assert run.names("tensorboard")


def test_an_interrupted_run_resumes_without_gaps_or_repeats(make: Make, tmp_path: Path) -> None:
    plan, recipe = make(tmp_path / "whole", save={"every": 2})
    fit(plan, recipe)
    plan, recipe = make(tmp_path / "cut", save={"every": 2})
    with pytest.raises(KeyboardInterrupt):
        fit(plan, recipe, until=5)
    assert len(of_kind(read(Store(plan.run_url)), "train")) == 5
    fit(plan, recipe)
    whole, cut = (
        [(r["step"], r["loss"]) for r in of_kind(read(Store(str(tmp_path / name))), "train")]
        for name in ("whole", "cut")
    )
    assert [step for step, _ in cut] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in cut] == pytest.approx([loss for _, loss in whole], abs=1e-6)


def test_a_user_error_is_raised_unchanged_and_logged(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise DataError("the rows are gone", hint="bring them back")

    monkeypatch.setattr(loop, "run", run)
    plan, recipe = make(tmp_path)
    with pytest.raises(DataError) as caught:
        fit(plan, recipe)
    assert str(caught.value) == "the rows are gone; bring them back"
    assert "DataError" in (tmp_path / "logs" / "worker-0.log").read_text()


def test_an_unexpected_error_names_the_rank_and_the_log(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(loop, "run", run)
    plan, recipe = make(tmp_path)
    with pytest.raises(WorkerError) as caught:
        fit(plan, recipe)
    log = tmp_path / "logs" / "worker-0.log"
    assert (
        caught.value.message
        == f"worker 0 failed: ZeroDivisionError: division by zero; the traceback is in {log}"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "Traceback" in log.read_text()


def test_out_of_gpu_memory_has_a_hint() -> None:
    error = worker.explain(torch.OutOfMemoryError("CUDA out of memory. Tried …"), 3, "LOG")
    assert error.message == "worker 3 ran out of GPU memory; the traceback is in LOG"
    assert "micro_batch_size" in str(error.hint)


def test_the_cause_is_chosen_from_the_errors_of_all_ranks() -> None:
    from ray.exceptions import RayActorError

    mistake, follow = DataError("a mistake"), WorkerError("connection closed by peer")
    assert cause({0: follow, 1: mistake}) is mistake
    assert cause({0: follow, 1: TrainingError("it diverged")}).message == "it diverged"
    assert "the process of worker 1 died" in str(cause({0: follow, 1: RayActorError()}))
    assert cause({0: follow, 1: WorkerError("later")}) is follow
    # A lost connection to another worker is reported only if no rank has another error.
    lost = worker.explain(RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] reset"), 0, "LOG")
    assert lost.message == "worker 0 lost the connection to another worker; the traceback is in LOG"
    assert cause({0: lost, 1: follow}) is follow
    assert cause({0: lost}) is lost
    silent = ValueError("a health check failed")
    silent.health_check_failure = RayActorError()  # type: ignore[attr-defined]
    assert "the process of worker 1 died" in str(cause({0: lost, 1: silent}))


@pytest.mark.parametrize(
    "name", [".tmp-status.json-0a1b2c3d", ".tmp-adapter-0a1b2c3d/x", "logs/.tmp-a-0a1b2c3d"]
)
def test_incomplete_files_of_a_killed_command_are_removed(make: Make, tmp_path: Path, name: str) -> None:
    plan, recipe = make(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("half")
    fit(plan, recipe)
    assert list(tmp_path.rglob(".tmp-*")) == []
