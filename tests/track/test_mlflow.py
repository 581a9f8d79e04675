"""MLflow's file store: one run, its figures by step, its settings; an unreachable server does not end a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.errors import StoreError
from tailor.spec.track import Track
from tailor.store import Store
from tailor.track import open_trackers
from tests.helpers.run_folders import RECIPE, train_record


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "very-private-text")


def open_mlflow(run: Store, **options: Any) -> Any:
    run.write_text("recipe.yaml", RECIPE.format(to=run.url))
    track = Track.model_validate({"tensorboard": False, "mlflow": {"experiment": "stitches"}})
    (tracker,) = open_trackers(track, run, **options)
    return tracker


def write(run: Store, steps: range, *, after_step: int = 0, finished: bool = True) -> None:
    tracker = open_mlflow(run, after_step=after_step)
    for step in steps:
        tracker.write(train_record(step, loss=float(step), grad_norm=float("inf")))
    tracker.write({"kind": "evaluation", "step": steps[-1], "loss": 0.5})
    tracker.close(finished=finished)


def runs() -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("stitches")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def curve(name: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return sorted((point.step, point.value) for point in MlflowClient().get_metric_history(name, key))


def test_figures_and_settings_are_there_and_no_secret(tmp_path: Path) -> None:
    write(Store(str(tmp_path / "run")), range(1, 4))
    (found,) = runs()
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    assert curve(found.info.run_id, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert curve(found.info.run_id, "evaluation/loss") == [(3, 0.5)]
    assert curve(found.info.run_id, "train/grad_norm") == []
    assert found.data.params["method.name"] == "sft"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 10
    assert not any(b"very-private-text" in file.read_bytes() for file in written)


def test_a_resumed_run_is_the_same_run_and_a_restarted_one_is_new(tmp_path: Path) -> None:
    run = Store(str(tmp_path / "run"))
    write(run, range(1, 5), finished=False)
    assert [found.info.status for found in runs()] == ["KILLED"]
    write(run, range(3, 6), after_step=2)
    (found,) = runs()
    assert found.info.status == "FINISHED"
    assert [step for step, _ in curve(found.info.run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in curve(found.info.run_id, "evaluation/loss")] == [4, 5]
    write(run, range(1, 3))
    assert len(runs()) == 2


def test_steps_that_a_killed_run_had_not_sent_are_sent_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 4, with step 4 and the evaluation of step 3 in memory only; again at step 3, then resumed."""
    run = Store(str(tmp_path / "run"))
    tracker = open_mlflow(run)
    for step in (1, 2, 3):
        tracker.write(train_record(step, loss=float(step)))
    tracker._send()
    tracker._periodic.close()
    for last in (3, 5):
        tracker = open_mlflow(run, after_step=1)
        for step in range(2, last + 1):
            tracker.write(train_record(step, loss=float(step)))
        tracker.write({"kind": "evaluation", "step": 3, "loss": 0.5})
        tracker._send()
        tracker._periodic.close()
    (found,) = runs()
    assert curve(found.info.run_id, "train/loss") == [(step, float(step)) for step in range(1, 6)]
    assert curve(found.info.run_id, "evaluation/loss") == [(3, 0.5)]


def test_more_figures_than_a_request_takes_all_arrive(tmp_path: Path) -> None:
    write(Store(str(tmp_path / "run")), range(1, 301))
    (found,) = runs()
    assert len(curve(found.info.run_id, "train/loss")) == 300
    assert len(curve(found.info.run_id, "train/tokens_per_second")) == 300


def test_a_lost_server_is_reported_and_gets_everything_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tracker = open_mlflow(Store(str(tmp_path / "run")), warn=said.append)
    client, log_batch = tracker._client, tracker._client.log_batch

    def away(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(client, "log_batch", away)
    tracker.write(train_record(1, loss=1.0))
    with pytest.raises(StoreError, match="metrics could not be sent: no route"):
        tracker._send()
    monkeypatch.setattr(client, "log_batch", log_batch)
    tracker.write(train_record(2, loss=2.0))
    tracker.close(finished=True)
    assert said == []
    assert curve(runs()[0].info.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]

    tracker = open_mlflow(Store(str(tmp_path / "lost")), warn=said.append)
    monkeypatch.setattr(tracker._client, "log_batch", away)
    tracker.write(train_record(1, loss=1.0))
    tracker.close(finished=True)
    assert len(said) == 1
    assert said[0].startswith("MLflow has not received all metrics of the run: ")


def test_a_name_that_mlflow_does_not_allow_does_not_block_the_others(tmp_path: Path) -> None:
    """`@` is written as `_at_`. A name that is refused is left out and named; the run has everything else, and ends."""
    said: list[str] = []
    tracker = open_mlflow(Store(str(tmp_path / "run")), warn=said.append)
    for step in (1, 2):
        tracker.write(train_record(step, loss=float(step)))
        tracker.write({"kind": "retrieval", "step": step, "recall@1": 0.25 * step, "a//b": 1.0})
        tracker._send()
    tracker.close(finished=True)
    (found,) = runs()
    assert found.info.status == "FINISHED"
    assert curve(found.info.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]
    assert curve(found.info.run_id, "retrieval/recall_at_1") == [(1, 0.25), (2, 0.5)]
    (line,) = said
    assert line.startswith("MLflow refused the metric retrieval/a//b: ")


def test_the_run_ends_although_metrics_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = open_mlflow(Store(str(tmp_path / "run")), warn=said.append)

    def away(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(tracker._client, "log_batch", away)
    tracker.write(train_record(1, loss=1.0))
    tracker.close(finished=True)
    assert [found.info.status for found in runs()] == ["FINISHED"]
    assert len(said) == 1


def test_a_wrong_address_is_reported_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match=r"track\.mlflow: .*check MLFLOW_TRACKING_URI"):
        open_mlflow(Store(str(tmp_path / "run")))
