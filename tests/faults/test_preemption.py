"""Two nodes, of which one is drained (a spot notice) or cut off: at most one step is lost, and the curve is the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tailor.runs.log import read
from tests.helpers.killing import Command, Process, comparable_records, ended, make_place
from tests.helpers.ray_clusters import Machines, cluster

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(1200)]

STEPS = (
    "train.steps=60",
    "train.micro_batch_size=2",
    "evaluate.every=30",
    "evaluate.generation=null",
)
ELASTIC = "scale.workers={min: 1, max: 2}"
RARELY, OFTEN = "save.every=1000", "save.every=1"
SLOW_STEPS = {"module": "tailor.train.step", "name": "StepRunner.step", "does": "wait", "call": 0}
NO_NOTICES = {"module": "tailor.onray.preemption", "name": "NoticeWatcher._watch", "does": "drop"}
NOTICE_SECONDS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Path) -> list[float]:
    """The losses of an undisturbed run on one worker."""
    command = Command(place, "whole", (*STEPS, RARELY))
    command.finish()
    return losses(command)


def machines(*points: dict[str, Any]) -> Any:
    """A head without CPUs, on which the command runs, and two nodes of one CPU."""
    return cluster(0, 1, 1, disturb=[SLOW_STEPS, *points], own_addresses=True)


def losses(command: Command) -> list[float]:
    return [record["loss"] for record in comparable_records(command.run) if "loss" in record]


def statuses(command: Command) -> list[str]:
    return [record["message"] for record in read(command.run) if record["kind"] == "status"]


def resumed_at(command: Command) -> list[int]:
    start = "resuming from step "
    return [int(line.removeprefix(start)) for line in statuses(command) if line.startswith(start)]


def failures(command: Command) -> list[str]:
    return [failure["error"] for failure in json.loads(command.run.read_text("status.json"))["failures"]]


def started(place: Path, name: str, save: str, found: Machines) -> tuple[Command, Process]:
    command = Command(place, name, (*STEPS, ELASTIC, save), found.environment)
    process = command.start()
    command.wait_for(process, 10)
    return command, process


def assert_ends_like(command: Command, process: Process, whole: list[float]) -> str:
    """Returns the output."""
    result = ended(process)
    assert result.code == 0, result.out + result.err
    assert losses(command) == pytest.approx(whole, abs=1e-5)
    assert result.err == ""
    for dump in ("(raylet)", "state-dump", "Traceback", "heartbeats"):
        assert dump not in result.out, "Ray's dumps stay out of the terminal"
    return result.out


def test_a_drained_node(place: Path, whole: list[float]) -> None:
    with machines() as found:
        command, process = started(place, "drained", RARELY, found)
        found.drain(2, NOTICE_SECONDS)
        drained, step = time.monotonic(), command.step()
        command.wait_until(process, lambda: bool(resumed_at(command)))
        seconds = time.monotonic() - drained
        (resumed,) = resumed_at(command)
        time.sleep(max(0.0, NOTICE_SECONDS - seconds))
        found.kill(2)
        out = assert_ends_like(command, process, whole)
    notice, loss = [line for line in statuses(command) if "preempted" in line], failures(command)
    assert len(notice) == 1
    assert notice[0].startswith("node ")
    assert "(127.0.0.3) will be preempted in" in notice[0]
    assert notice[0] in out
    assert len(loss) == 1
    assert loss[0].endswith("(127.0.0.3) is being preempted")
    # Nothing but the notice made a checkpoint, and no step was trained twice.
    trained = [record["step"] for record in read(command.run) if record["kind"] == "train"]
    assert trained == list(range(1, 61))
    print(f"\ndrained at step {step}: resumed from step {resumed} after {seconds:.1f} s; 0 steps lost")


def test_without_notices_a_drained_node_costs_all_steps_since_the_last_checkpoint(
    place: Path, whole: list[float]
) -> None:
    """The control of the test above."""
    with machines(NO_NOTICES) as found:
        command, process = started(place, "unnoticed", RARELY, found)
        found.drain(2, 5)
        time.sleep(6)
        step = command.step()
        found.kill(2)
        assert_ends_like(command, process, whole)
    assert resumed_at(command) == []
    (loss,) = failures(command)
    assert "(127.0.0.3) was preempted" in loss
    print(f"\nthe control without notices: {step} steps lost; {loss}")


@pytest.mark.parametrize("number", [1, 2])
def test_a_cut_node(place: Path, whole: list[float], number: int) -> None:
    with machines() as found:
        command, process = started(place, f"cut-{number}", OFTEN, found)
        found.kill(number)
        cut, step = time.monotonic(), command.step()
        command.wait_until(process, lambda: bool(resumed_at(command)))
        seconds = time.monotonic() - cut
        (resumed,) = resumed_at(command)
        out = assert_ends_like(command, process, whole)
    (loss,) = failures(command)
    assert f"(127.0.0.{number + 1}) was lost, with worker" in loss
    assert f"{loss}; restarting from the last checkpoint\n" in out
    assert resumed >= step - 1, "at most one step is lost"
    print(f"\ncut at step {step}: resumed from step {resumed} after {seconds:.1f} s; {loss}")


def test_the_curve_of_another_seed_differs(place: Path, whole: list[float]) -> None:
    """The control of all comparisons."""
    other = Command(place, "other", (*STEPS, RARELY, "train.seed=1"))
    other.finish()
    assert losses(other) != pytest.approx(whole, abs=1e-3)
