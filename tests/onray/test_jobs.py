"""Jobs on a cluster of two machines: the real commands against a real job server, one machine killed."""

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
from tests.helpers.killing import PATHS, PATIENCE, Command, Ended, ended, make_place, told
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
    """Where commands are given, beside a cluster that shares this folder."""

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
        """The name of a job that nobody follows."""
        sent = self("tailor", "submit", "recipe.yaml", "--shared", ".", "--detach", *words)
        assert sent.code == 0, sent.err
        return sent.out.split()[3]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    place = make_place(tmp_path_factory.mktemp("place"))
    # The undisturbed run and one of another seed, each in a process of its own, while the cluster starts.
    others = [Command(place, "whole", STEPS), Command(place, "other", (*STEPS, "train.seed=1"))]
    processes = [command.start() for command in others]
    with cluster(1, 1, disturb=[SLOW_STEPS]) as machines:
        results = [ended(process) for process in processes]
        assert [result.code for result in results] == [0, 0], results
        yield Desk(machines, place)


@pytest.fixture
def whole(desk: Desk) -> Command:
    """The undisturbed run."""
    return Command(desk.place, "whole")


def wait_until(there: Callable[[], bool], follower: subprocess.Popen[str]) -> None:
    """While the job is followed."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        if follower.poll() is not None or time.monotonic() > deadline:
            follower.kill()
            raise AssertionError("\n".join(follower.communicate()))
        time.sleep(0.1)


def losses(run: Store) -> list[float]:
    return [record["loss"] for record in told(run) if "loss" in record]


def step(run: Store) -> int:
    return max((record["step"] for record in read(run) if record["kind"] == "train"), default=0)


def offered(machines: Machines, run: Store) -> set[str]:
    """What Prometheus would read of a run."""
    found = re.findall(rf'^(ray_tailor_\w+){{.*run="{run.url}".*}} \d', machines.metrics(), re.MULTILINE)
    return set(found)


@pytest.fixture(scope="module")
def stopped(desk: Desk) -> Command:
    """A job on both machines that was listed, followed and stopped amid its steps; its run."""
    run = Command(desk.place, "job").run
    name = desk.submit("save.to=runs/job", *STEPS, BOTH)
    follower = desk.start("tailor", "jobs", "logs", name)
    listed = desk("tailor", "jobs", "list")
    assert re.search(f"{name} +(pending|running) .* {run.url}", listed.out), listed.out
    wait_until(lambda: step(run) >= 3, follower)
    wait_until(lambda: offered(desk.machines, run) >= GAUGES, follower)

    stop = desk("tailor", "jobs", "stop", name)
    assert stop.code == 0, stop.err
    assert "stopping after this step, with a checkpoint" in stop.out
    assert "data prepared" not in stop.out, "what was said before the stop is left out"
    assert stop.err == f"job {name} is stopped\n"
    log = ended(follower)
    assert log.code == STOPPED_CODE
    assert "data prepared" in log.out
    assert "joined the Ray cluster" in log.out
    assert log.out.endswith(stop.out)
    return Command(desk.place, "job")


def test_a_stopped_job_left_the_checkpoint_of_its_last_step(stopped: Command, desk: Desk) -> None:
    last = step(stopped.run)
    assert 3 <= last < 40
    assert stopped.run.join("checkpoints").names()[-1] == f"step-{last:08d}"
    # Control: a name that no job has.
    unknown = desk("tailor", "jobs", "logs", "nothing")
    assert (unknown.code, unknown.err) == (
        2,
        f"tailor: {desk.machines.url} has no job nothing\n  hint: `tailor jobs list` names its jobs\n",
    )


def test_a_run_in_a_jobs_working_directory_is_refused(desk: Desk) -> None:
    """`ray job submit` finds `tailor run` and the files; the run's folder would be removed with the job."""
    # Ray's own command must be told of the token; tailor's finds it.
    sent = desk(*RAY_SUBMIT, RAY_AUTH_MODE="token")
    assert sent.code == 1, "the code that Ray's own command gives for any failure"
    told = "tailor: save.to lies in the job's working directory"
    assert told in sent.out
    name = re.search(r"raysubmit_\w+", sent.out)
    assert name
    again = desk("tailor", "jobs", "logs", name[0])
    assert again.code == 2, "the command's own"
    assert told in again.out


@pytest.mark.soak
def test_ray_job_submit_runs_to_the_end(desk: Desk, whole: Command) -> None:
    """As written, with the files beside the recipe in the job's working directory."""
    elsewhere = [f"{key}={desk.place / 'elsewhere' / key}" for key in ("save.to", "data.store")]
    finished = desk(*RAY_SUBMIT, *elsewhere, *STEPS, RAY_AUTH_MODE="token")
    assert finished.code == 0, finished.out
    assert losses(Store(str(desk.place / "elsewhere" / "save.to"))) == pytest.approx(
        losses(whole.run), abs=1e-5
    )


def test_a_machine_is_lost_and_the_job_ends_as_if_not(stopped: Command, whole: Command, desk: Desk) -> None:
    """It goes on from where the job before it was stopped."""
    before = step(stopped.run)
    job = desk.start("tailor", "submit", "recipe.yaml", "--shared", ".", "save.to=runs/job", *STEPS, BOTH)
    wait_until(lambda: step(stopped.run) >= before + 2, job)
    desk.machines.kill(1)
    result = ended(job)
    assert result.code == 0, result.out + result.err
    assert f"resuming from step {before}\n" in result.out
    assert "starting again from the last checkpoint" in result.out, "a worker was on the machine"
    assert "step 40/40" in result.out
    assert len(json.loads(stopped.run.read_text("status.json"))["failures"]) == 1
    assert f"step {before} " not in result.out, "its steps are not made twice"
    assert losses(stopped.run) == pytest.approx(losses(whole.run), abs=1e-5)
    # Control: another seed is another curve.
    other = Command(desk.place, "other")
    assert losses(other.run) != pytest.approx(losses(whole.run), abs=1e-3)
