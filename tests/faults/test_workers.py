"""Ray workers that are killed, with or without the command that started them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.faults.test_signals import assert_resumes, assert_stopped_at
from tests.helpers.killing import (
    PATIENCE,
    Command,
    assert_equal_runs,
    comparable_records,
    ended,
    make_place,
    moments,
    processes_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

TWO = ("scale.workers=2",)
STEP = {"module": "tailor.train.step", "name": "StepRunner.step"}
SLOW_STEPS = {**STEP, "does": "wait", "call": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Command:
    """The undisturbed run on two workers."""
    command = Command(place, "whole", TWO)
    command.finish()
    return command


def losses(command: Command) -> list[float]:
    return [record["loss"] for record in comparable_records(command.run) if "loss" in record]


def assert_no_process_remains(session: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while remaining := processes_of(session):
        assert time.monotonic() < deadline, remaining
        time.sleep(0.2)


@pytest.mark.soak
def test_a_run_restarts_by_itself_when_a_worker_is_killed(place: Path, whole: Command) -> None:
    cut = Command(place, "worker", TWO)
    out = cut.finish({**STEP, "does": "kill", "call": 6, "rank": 1, "once": str(place / "killed")}).out
    cause = "the process of worker 1 died: it was killed, or the node ran out of memory"
    assert f"{cause}; restarting from the last checkpoint\n" in out
    status = json.loads(cut.run.read_text("status.json"))
    assert [failure["error"] for failure in status["failures"]] == [cause]
    assert_equal_runs(cut.run, whole.run)


@pytest.mark.soak
def test_two_workers_then_one_then_four_give_one_curve(place: Path, whole: Command) -> None:
    """First the command is killed, then its whole process group. In both cases no process remains that could write."""
    for number, workers in enumerate((2, 1)):
        cut = Command(place, "changing", (f"scale.workers={workers}",))
        process = cut.start(SLOW_STEPS)
        cut.wait_for(process, 4 * (number + 1))
        if number:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        assert ended(process).code == -signal.SIGKILL
        assert_no_process_remains(process.pid)
    cut = Command(place, "changing", ("scale.workers=4",))
    cut.finish()
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    assert [(r["kind"], r.get("step")) for r in comparable_records(cut.run)] == [
        (r["kind"], r.get("step")) for r in comparable_records(whole.run)
    ]
    adapter, expected = (
        load_file(command.run.local_path("adapter/adapter_model.safetensors")) for command in (cut, whole)
    )
    assert_close(adapter, expected, atol=1e-5, rtol=1e-4)
    # Control: another seed gives another curve.
    other = Command(place, "other", ("train.seed=1", "train.micro_batch_size=2"))
    other.finish()
    assert losses(other) != pytest.approx(losses(whole), abs=1e-3)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C in a terminal"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM to the command"),
    ],
)
def test_a_signal_saves_the_current_step(place: Path, whole: Command, number: int, to_all: bool) -> None:
    """A terminal sends Ctrl-C to every process of the group, `ray job stop` SIGTERM to the command alone."""
    cut = Command(place, f"signal-{number}", TWO)
    process = cut.start(SLOW_STEPS)
    cut.wait_for(process, 4)
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    result = ended(process)
    step = assert_stopped_at(cut, result.code, result.err, number)
    assert 4 <= step < 12
    assert_no_process_remains(process.pid)
    assert_resumes(cut, whole, step)


@pytest.mark.soak
def test_a_signal_during_preparation_with_ray_ends_the_command(place: Path) -> None:
    cut = Command(place, "early", (*TWO, "data.store=tokens-early"))
    by_ray = {"module": "tailor.onray.prepare", "name": "SMALL_ON_CLUSTER", "does": "set", "value": 0}
    process = cut.start(by_ray, {"module": "tailor.encode.prepare", "name": "_publish", "does": "stop"})
    result = ended(process)
    assert result.code == 143
    assert result.err.startswith("tailor: interrupted before training began; there is no checkpoint yet"), (
        result.err
    )
    assert_no_process_remains(process.pid)


@pytest.mark.soak
def test_without_retries_the_error_is_raised(place: Path) -> None:
    cut = Command(place, "none", (*TWO, "scale.max_failures=0"))
    result = cut({**STEP, "does": "kill", "call": 4, "rank": 1})
    assert result.code == 1
    assert result.err.startswith("tailor: the process of worker 1 died"), result.err
    assert json.loads(cut.run.read_text("status.json"))["state"] == "failed"


@pytest.mark.soak
def test_a_worker_that_raises_is_restarted_once(place: Path, whole: Command) -> None:
    once = Command(place, "raises", TWO)
    once.finish({**STEP, "does": "raise", "call": 6, "rank": 1, "once": str(place / "raised")})
    assert_equal_runs(once.run, whole.run)
    # The same error at the same step is not retried again.
    always = Command(place, "raises-always", (*TWO, "scale.max_failures=9"))
    result = always({**STEP, "does": "raise", "call": 0, "if": ", 5, ", "rank": 1})
    assert result.code == 1
    assert "worker 1 failed: RuntimeError: disturbed; the traceback is in" in result.err
    assert len(json.loads(always.run.read_text("status.json"))["failures"]) == 1
    assert "RuntimeError: disturbed" in always.run.read_text("logs/worker-1.log")


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_killed_at_random_moments(place: Path, whole: Command) -> None:
    """The command, one worker, or the whole group; a fifth of SOAK kills."""
    number = max(3, int(os.environ["SOAK"]) // 5)
    kinds = ("command", "worker", "group")
    counts = dict.fromkeys(kinds, 0)
    for kill, share in enumerate(moments(11, number, 11)):
        kind, step = kinds[kill % 3], 1 + int(share)
        cut = Command(place, f"random-{kill}", TWO)
        if kind == "worker":
            once = {"call": step, "rank": kill // 3 % 2, "once": str(place / f"killed-{kill}")}
            cut.finish({**STEP, "does": "kill", **once})
        else:
            process = cut.start(SLOW_STEPS)
            cut.wait_for(process, step)
            if kind == "group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            ended(process)
            assert_no_process_remains(process.pid)
            cut.finish()
        assert_equal_runs(cut.run, whole.run)
        counts[kind] += 1
    print(f"\n{number} kills of two-worker runs ({counts}), nothing lost")
