"""SIGKILL at exact points and at random moments: the run resumes and produces the same files as an undisturbed run."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.killing import (
    Command,
    assert_equal_runs,
    best_step,
    comparable_records,
    make_place,
    moments,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHECKPOINT = "checkpoints/step-"
POINTS: dict[str, dict[str, Any]] = {
    "in preparation": {"module": "tailor.encode.prepare", "name": "_publish"},
    "between plan and recipe": {"module": "tailor.onray.run", "name": "resolved_yaml"},
    "before the first step": {"module": "tailor.train.step", "name": "StepRunner.step"},
    "between weights and optimizer": {"module": "torch", "name": "save"},
    "between the files and the marker": {"module": "tailor.store.publication", "name": "Publication.commit"},
    "between the marker and the name": {
        "module": "tailor.store.publication",
        "name": "Publication._take_the_name",
        "call": 2,
    },
    "between the commit and retention": {
        "module": "tailor.train.checkpoint",
        "name": "remove_old",
    },
    "in retention": {
        "module": "shutil",
        "name": "rmtree",
        "if": CHECKPOINT,
    },
    "in evaluation": {"module": "tailor.methods.next_token", "name": "NextToken.evaluate", "call": 2},
    "after evaluation": {"module": "tailor.train.loop", "name": "evaluate", "after": True, "call": 2},
    "in a metric line": {
        "module": "tailor.store.store",
        "name": "Store.append_text",
        "if": '"step":10',
        "does": "half",
    },
    "in the last evaluation": {"module": "tailor.train.loop", "name": "evaluate", "if": ", 12)"},
    "in the artifact": {"module": "tailor.encode.tokenizer_files", "name": "Original.write"},
    "after the artifact": {"module": "tailor.train.artifact", "name": "write_artifact", "after": True},
    "while the artifact is replaced": {
        "module": "os",
        "name": "rename",
        "if": "-before'",
        "after": True,
    },
    "before the report": {"module": "tailor.runs.report.page", "name": "write"},
}


DEFAULT_POINTS = (
    "in preparation",
    "between weights and optimizer",
    "between the marker and the name",
    "in retention",
    "in evaluation",
    "in a metric line",
    "in the artifact",
    "before the report",
)
"""The other points are tested by `make soak`."""
WRONG_RESUMES = {
    "without the optimizer's state": {
        "module": "torch.optim",
        "name": "Optimizer.load_state_dict",
        "does": "drop",
    },
    "one step too far": {"module": "tailor.train.checkpoint", "name": "load", "does": "shift"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Command:
    """The undisturbed run. Its best checkpoint is not its last one, so the artifact depends on which one was kept."""
    command = Command(place, "whole")
    command.finish()
    best = best_step(command.run)
    assert best is not None
    assert best < 12
    return command


def test_killed_at_exact_points(place: Path, whole: Command) -> None:
    cut = Command(place, "cut", ("data.store=tokens-cut",))  # so that it prepares its data, too
    for name in DEFAULT_POINTS:
        cut.killed_at({"does": "kill", **POINTS[name]})
        if name == "in evaluation":
            shutil.copytree(cut.run.local_path(), place / "runs" / "control")
    cut.finish()
    assert_equal_runs(cut.run, whole.run)

    # Controls: wrong ways to resume are detected.
    for number, point in enumerate(WRONG_RESUMES.values()):
        control = Command(place, f"control-{number}")
        shutil.copytree(place / "runs" / "control", control.run.local_path())
        control.finish(point)
        with pytest.raises(AssertionError, match="records"):
            assert_equal_runs(control.run, whole.run)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_killed_at_every_exact_point(place: Path, whole: Command) -> None:
    cut = Command(place, "every", ("data.store=tokens-every",))
    for point in POINTS.values():
        cut.killed_at({"does": "kill", **point})
    cut.finish()
    assert_equal_runs(cut.run, whole.run)
    print(f"\n{len(POINTS)} kills at exact points, nothing lost")


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("storage", ["local", "s3"])
def test_killed_at_random_moments(
    place: Path, whole: Command, storage: str, request: pytest.FixtureRequest
) -> None:
    """Runs are killed until SOAK kills have hit a running one. Every second kill is of the whole process group."""
    number = int(os.environ["SOAK"])
    folder = f"{request.getfixturevalue('s3')}/runs" if storage == "s3" else f"runs/{storage}"
    began = time.monotonic()
    undisturbed = Command(place, "undisturbed", runs=folder)
    undisturbed.finish()
    longest = time.monotonic() - began
    assert comparable_records(undisturbed.run) == comparable_records(whole.run)
    runs = kills = 0
    for count, seconds in enumerate(moments(7, 10 * number, longest)):
        cut = Command(place, f"random-{runs}", (f"data.store=tokens-{storage}-{runs}",), runs=folder)
        if cut.killed_after(seconds, group=count % 2 == 1):
            kills += 1
        else:
            assert_equal_runs(cut.run, undisturbed.run)
            runs += 1
        if kills >= number:
            break
    cut = Command(place, f"random-{runs}", (f"data.store=tokens-{storage}-{runs}",), runs=folder)
    cut.finish()
    assert_equal_runs(cut.run, undisturbed.run)
    print(f"\n{kills} kills at random moments, {storage}, over {runs + 1} runs, nothing lost")
