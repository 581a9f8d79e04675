"""Jobs on a cluster of two nodes: the real commands with a real job server; one node is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tailor.onray.jobs import STOPPED_CODE
from tailor.runs.log import read
from tailor.store import Store
from tests.helpers.killing import PATHS, PATIENCE, Command, Ended, comparable_records, ended, make_place
from tests.helpers.ray_clusters import Machines, cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SLOW_STEPS = {"module": "tailor.train.step", "name": "StepRunner.step", "does": "wait", "call": 0}
RAY_SUBMIT = (
    "ray.scripts.scripts",
    "job",
    "submit",
    "--working-dir",
    ".",
    "--",
    "tailor",
    "run",
    "recipe.yaml",
)
GAUGES = {"ray_tailor_loss", "ray_tailor_tokens_per_second", "ray_tailor_steps"}
BOTH = "scale.workers={min: 1, max: 2}"
STEPS = ("train.steps=40", "train.micro_batch_size=2", "evaluate.every=20", "save.every=4")


@dataclass
class Desk:
    """Runs commands on the machine of a user, who shares a folder with the cluster."""

    machines: Machines
    place: Path

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self.place,
            env={
                **os.environ,
                "PYTHONPATH": PATHS,
                "RAY_AUTH_TOKEN": self.machines.environment["RAY_AUTH_TOKEN"],
                "RAY_API_SERVER_ADDRESS": self.machines.url,
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *words: str, **environment: str) -> Ended:
        return ended(self.start(*words, **environment))

    def submit(self, *words: str) -> str:
        """Submit a detached job and return its name."""
        sent = self("tailor", "submit", "recipe.yaml", "--shared", ".", "--detach", *words)
        assert sent.code == 0, sent.err
        return sent.out.split()[3]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    place = make_place(tmp_path_factory.mktemp("place"))
    # The uninterrupted run and one with another seed, each in its own process, while the cluster starts.
    others = [Command(place, "whole", STEPS), Command(place, "other", (*STEPS, "train.seed=1"))]
    processes = [command.start() for command in others]
    with cluster(1, 1, disturb=[SLOW_STEPS]) as machines:
        results = [ended(process) for process in processes]
        assert [result.code for result in results] == [0, 0], results
        yield Desk(machines, place)


@pytest.fixture
def whole(desk: Desk) -> Command:
    """The uninterrupted run."""
    return Command(desk.place, "whole")


def wait_until(there: Callable[[], bool], follower: subprocess.Popen[str]) -> None:
    """Wait for a condition while `follower` runs."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        if follower.poll() is not None or time.monotonic() > deadline:
            follower.kill()
            raise AssertionError("\n".join(follower.communicate()))
        time.sleep(0.1)


def losses(run: Store) -> list[float]:
    return [record["loss"] for record in comparable_records(run) if "loss" in record]


def step(run: Store) -> int:
    return max((record["step"] for record in read(run) if record["kind"] == "train"), default=0)


def offered(machines: Machines, run: Store) -> set[str]:
    """The names of the gauges that Ray exports for a run."""
    found = re.findall(rf'^(ray_tailor_\w+){{.*run="{run.url}".*}} \d', machines.metrics(), re.MULTILINE)
    return set(found)


@pytest.fixture(scope="module")
def stopped(desk: Desk) -> Command:
    """The run of a job on both nodes that was listed, followed, and stopped during training."""
    run = Command(desk.place, "job").run
    name = desk.submit("save.to=runs/job", *STEPS, BOTH)
    follower = desk.start("tailor", "jobs", "logs", name)
    listed = desk("tailor", "jobs", "list")
    assert re.search(f"{name} +(pending|running) .* {run.url}", listed.out), listed.out
    wait_until(lambda: step(run) >= 3, follower)
    wait_until(lambda: offered(desk.machines, run) >= GAUGES, follower)

    stop = desk("tailor", "jobs", "stop", name)
    assert stop.code == 0, stop.err
    assert "stopping after this step and saving a checkpoint" in stop.out
    assert "data prepared" not in stop.out, "output from before the stop is not shown"
    assert stop.err == f"job {name} is stopped\n"
    log = ended(follower)
    assert log.code == STOPPED_CODE
    assert "data prepared" in log.out
    assert "joined the Ray cluster" in log.out
    assert log.out.endswith(stop.out)
    return Command(desk.place, "job")


def test_a_stopped_job_has_a_checkpoint_of_its_last_step(stopped: Command, desk: Desk) -> None:
    last = step(stopped.run)
    assert 3 <= last < 40
    assert stopped.run.join("checkpoints").names()[-1] == f"step-{last:08d}"
    # Control: an unknown job.
    unknown = desk("tailor", "jobs", "logs", "nothing")
    assert (unknown.code, unknown.err) == (
        2,
        f"tailor: {desk.machines.url} has no job nothing\n  hint: list the jobs with `tailor jobs list`\n",
    )


def test_a_run_folder_in_the_jobs_working_directory_is_an_error(desk: Desk) -> None:
    """`ray job submit` finds `tailor run` and the files; Ray would remove the run folder with the job."""
    # Ray's command needs RAY_AUTH_MODE for the token; tailor's does not.
    sent = desk(*RAY_SUBMIT, RAY_AUTH_MODE="token")
    assert sent.code == 1, "Ray's exit code for any failure"
    error = "tailor: save.to is inside the job's working directory"
    assert error in sent.out
    name = re.search(r"raysubmit_\w+", sent.out)
    assert name
    again = desk("tailor", "jobs", "logs", name[0])
    assert again.code == 2, "the exit code of `tailor run`"
    assert error in again.out


@pytest.mark.soak
def test_ray_job_submit_runs_to_the_end(desk: Desk, whole: Command) -> None:
    """With the files next to the recipe in the job's working directory, and the run folder outside."""
    elsewhere = [f"{key}={desk.place / 'elsewhere' / key}" for key in ("save.to", "data.store")]
    finished = desk(*RAY_SUBMIT, *elsewhere, *STEPS, RAY_AUTH_MODE="token")
    assert finished.code == 0, finished.out
    assert losses(Store(str(desk.place / "elsewhere" / "save.to"))) == pytest.approx(
        losses(whole.run), abs=1e-5
    )


@pytest.mark.soak
def test_a_job_that_loses_a_node_has_the_same_result(stopped: Command, whole: Command, desk: Desk) -> None:
    """It resumes where the previous job was stopped."""
    before = step(stopped.run)
    job = desk.start("tailor", "submit", "recipe.yaml", "--shared", ".", "save.to=runs/job", *STEPS, BOTH)
    wait_until(lambda: step(stopped.run) >= before + 2, job)
    desk.machines.kill(1)
    result = ended(job)
    assert result.code == 0, result.out + result.err
    assert f"resuming from step {before}\n" in result.out
    assert "restarting from the last checkpoint" in result.out, "a worker was on the node"
    assert "step 40/40" in result.out
    assert len(json.loads(stopped.run.read_text("status.json"))["failures"]) == 1
    assert f"step {before} " not in result.out, "its steps are not repeated"
    assert losses(stopped.run) == pytest.approx(losses(whole.run), abs=1e-5)
    # Control: another seed gives another curve.
    other = Command(desk.place, "other")
    assert losses(other.run) != pytest.approx(losses(whole.run), abs=1e-3)
