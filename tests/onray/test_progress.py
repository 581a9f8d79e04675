"""What a run does now, on the display and in status.json."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.display import Display
from tailor.onray import progress
from tailor.onray.interrupts import Interrupts
from tailor.onray.progress import Stopwatch, publisher, recorded
from tailor.runs.lock import lock
from tailor.runs.status import Status
from tailor.store import Store
from tests.helpers.run_folders import train_record
from tests.plan.test_build import plan


def published(folder: Path, records: list[dict[str, Any]]) -> tuple[list[str], list[str | None]]:
    """(lines of a display off a terminal, phase in status.json after each record)."""
    run, stream, phases = Store(str(folder)), io.StringIO(), []
    made = dataclasses.replace(plan(), run_url=run.url, steps=2)
    status = Status(state="running", started="2026-01-01T00:00:00+00:00")
    with lock(run) as attempt, Display(stream=stream) as display:
        with recorded(run, status, made, attempt) as update:

            def update_and_wait(at_once: bool = False) -> None:
                update(at_once)
                if at_once:  # the file is written in another thread
                    while (read := Status.read(run)) is None or read.phase != status.phase:
                        pass

            watch = Stopwatch(status.timings)
            publish = publisher(made, run, status, watch, display, Interrupts(), update_and_wait)
            for record in records:
                publish(record)
                found = Status.read(run)
                assert found is not None
                phases.append(found.phase)
        last = Status.read(run)
        assert last is not None
        assert (last.state, last.phase) == ("finished", None)
    return stream.getvalue().splitlines(), phases


def test_an_evaluation_before_training_is_said_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STATUS_SECONDS", 3600.0)  # a phase does not wait for the interval
    answers = "generating 8 answers before training"
    records = [
        {"kind": "started", "time": 1.0},
        {"kind": "status", "message": "model loaded", "time": 2.0},
        {"kind": "status", "message": answers, "phase": "answers_before", "time": 3.0},
    ]
    result = {"kind": "generation", "when": "before", "exact_match": 0.5, "count": 8, "time": 900.0}
    training = [train_record(step) | {"time": 901.0} for step in (1, 2)]
    saved = {"kind": "saved", "step": 2, "time": 903.0}
    lines, phases = published(tmp_path / "run", [*records, result, *training, saved])
    assert phases == ["model", "model", "answers_before", "training", "training", "training", "artifact"]
    assert lines.index(answers) < lines.index("exact match before training: 50.0% of 8 answers")
