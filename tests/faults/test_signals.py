"""SIGTERM and Ctrl-C: a checkpoint of the current step, one line, and the same command resumes from that step."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tailor.store import run_folder
from tests.helpers.killing import Command, comparable_records, ended, make_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLOW_STEPS = {"module": "tailor.train.step", "name": "StepRunner.step", "does": "wait", "call": 0}
SLOW_EVALUATION = {
    "module": "tailor.methods.next_token",
    "name": "NextToken.evaluate",
    "does": "wait",
    "call": 0,
}
LINE = re.compile(
    r"tailor: interrupted at step (\d+) of 12; the same command goes on from step (\d+), the last checkpoint\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Command:
    command = Command(place, "whole")
    command.finish()
    return command


def without_extra_checkpoints(records: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [record for record in records if (record["kind"], record.get("step")) != ("checkpoint", step)]


def assert_stopped_at(command: Command, code: int, err: str, number: int) -> int:
    """The command ended with one line and a checkpoint of its current step. Returns the step."""
    assert code == 128 + number
    match = LINE.fullmatch(err)
    assert match, err
    assert match[1] == match[2]
    status = json.loads(command.run.read_text("status.json"))
    assert (status["state"], status["step"]) == ("interrupted", int(match[1]))
    assert run_folder.step_of(run_folder.checkpoints(command.run)[-1]) == int(match[1])
    return int(match[1])


def assert_resumes(command: Command, whole: Command, step: int) -> None:
    """The command resumes from that step, and its files equal the undisturbed run's, apart from the extra checkpoint."""
    out = command.finish().out
    assert f"resuming from step {step}\n" in out
    assert without_extra_checkpoints(comparable_records(command.run), step) == without_extra_checkpoints(
        comparable_records(whole.run), step
    )
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert command.run.read_bytes(file) == whole.run.read_bytes(file)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM])
def test_a_signal_during_a_step(place: Path, whole: Command, number: int) -> None:
    cut = Command(place, f"cut-{number}")
    process = cut.start(SLOW_STEPS)
    cut.wait_for(process, 4)
    process.send_signal(number)
    result = ended(process)
    assert "stopping after this step and saving a checkpoint; a second signal stops at once\n" in result.out
    step = assert_stopped_at(cut, result.code, result.err, number)
    assert 4 <= step < 12
    assert_resumes(cut, whole, step)


def test_a_signal_during_an_evaluation_stops_it(place: Path, whole: Command) -> None:
    """The evaluation is made once, after the run resumes."""
    cut = Command(place, "evaluation")
    stop = {"module": "tailor.methods.next_token", "name": "NextToken.evaluate", "does": "stop", "call": 4}
    result = cut(stop)
    # An evaluation has three micro-batches, so the fourth is the first one of the evaluation at step 4.
    step = assert_stopped_at(cut, result.code, result.err, signal.SIGTERM)
    assert step == 4
    assert [record["step"] for record in comparable_records(cut.run) if record["kind"] == "evaluation"] == [2]
    assert_resumes(cut, whole, step)


def test_a_second_signal_stops_at_once(place: Path) -> None:
    cut = Command(place, "twice")
    process = cut.start({**SLOW_EVALUATION}, SLOW_STEPS)
    cut.wait_for(process, 3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == 130
    assert re.fullmatch(r"tailor: interrupted at step \d+ of 12; the same command .*\n", result.err), (
        result.err
    )
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("where", "when"),
    [
        ({"module": "tailor.encode.prepare", "name": "_publish"}, "before training began"),
        ({"module": "tailor.train.strategy.start", "name": "load_for_training"}, "at step 0 of 12"),
    ],
    ids=["in preparation", "while the model is loaded"],
)
def test_a_signal_before_the_first_step_ends_the_command(
    place: Path, where: dict[str, Any], when: str
) -> None:
    cut = Command(place, "early", ("data.store=tokens-early",))
    result = cut({"does": "stop", **where})
    assert (result.code, result.err) == (
        143,
        f"tailor: interrupted {when}; there is no checkpoint yet, so the same command starts over\n",
    )
