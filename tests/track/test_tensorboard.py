"""TensorBoard's own reader finds the curves, also after a resume and in a remote folder."""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tailor.spec.track import Track
from tailor.store import Store
from tailor.track import open_trackers
from tests.helpers.run_folders import train_record


def write(run: Store, steps: range, *, after_step: int = 0, loss: float | None = None) -> None:
    (tracker,) = open_trackers(Track(), run, after_step=after_step)
    for step in steps:
        tracker.write(train_record(step, loss=loss if loss is not None else float(step)))
    tracker.write({"kind": "status", "message": "not a curve"})
    tracker.write({"kind": "evaluation", "step": steps[-1], "loss": 0.5, "perplexity": 1.6})
    tracker.close(finished=True)


def read(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


@pytest.mark.parametrize("remote", [False, True])
def test_the_curves_are_read_by_tensorboard(tmp_path: Path, remote: bool) -> None:
    run = Store(f"memory://{uuid.uuid4().hex}/run" if remote else str(tmp_path / "run"))
    write(run, range(1, 4))
    folder = run.local_path("tensorboard")
    assert read(folder, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert read(folder, "evaluation/perplexity")[0][0] == 3


def test_steps_after_the_checkpoint_that_is_resumed_from_are_replaced(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    write(run, range(1, 5), loss=1.0)
    write(run, range(3, 6), after_step=2, loss=2.0)
    assert read(tmp_path / "tensorboard", "train/loss") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_a_run_that_starts_over_leaves_nothing_of_the_earlier_one(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    write(run, range(1, 5))
    write(run, range(1, 3))
    assert [step for step, _ in read(tmp_path / "tensorboard", "train/loss")] == [1, 2]


def test_values_that_are_not_finite_leave_a_gap_and_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tracker,) = open_trackers(Track(), Store(str(tmp_path)))
    for step, norm in ((1, math.inf), (2, math.nan), (3, 1.5)):
        tracker.write(train_record(step, grad_norm=norm))
    tracker.close(finished=True)
    assert read(tmp_path / "tensorboard", "train/grad_norm") == [(3, 1.5)]
    assert len(read(tmp_path / "tensorboard", "train/loss")) == 3
    assert caplog.text == ""


def test_only_requested_trackers_are_opened(tmp_path: Path) -> None:
    assert open_trackers(Track(tensorboard=False), Store(str(tmp_path))) == []
