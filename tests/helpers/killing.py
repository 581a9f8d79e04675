"""The real command on a tiny model, killed and started again, and what is compared afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailor.runs.log import read
from tailor.store import COMMIT, Store
from tests.helpers.commands import ForkedCommand
from tests.helpers.models import tiny_llama

Process = subprocess.Popen[str] | ForkedCommand
ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(map(str, (ROOT / "tests/helpers/disturbance", ROOT)))
RECIPE = """\
model: {path: base, adapter: {rank: 4, dropout: 0.1}}
data: {train: [{path: rows.jsonl}], holdout: 0.3, max_length: 64, store: tokens}
method: {name: sft}
optim: {learning_rate: 0.06, schedule: constant}
train: {steps: 12, batch_size: 4, precision: fp32}
evaluate: {every: 2, generation: {limit: 3, max_new_tokens: 4, samples: 0}}
save: {to: runs/run, every: 3, keep: 1, best: true}
"""
COMPARED = ("train", "evaluation", "checkpoint", "generation")
OF_THE_CLOCK = (
    "time",
    "url",
    "data_seconds",
    "step_seconds",
    "tokens_per_second",
    "supervised_tokens_per_second",
    "peak_memory_bytes",
)
PATIENCE = 240.0
"""Seconds that a command may take on a machine that is busy with other things."""


def make_place(folder: Path) -> Path:
    """A folder with a base model, rows and a recipe of twelve steps."""
    tiny_llama(folder / "base", hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(60):
            turns = [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i * i}."}]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@dataclass
class Ended:
    """How a command ended; -9 is SIGKILL."""

    code: int
    out: str
    err: str


@dataclass
class Command:
    """`tailor run recipe.yaml`, with the run's folder at `runs/NAME`. runs: a folder of the place, or a URL."""

    place: Path
    name: str
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    runs: str = "runs"

    @property
    def run(self) -> Store:
        below = self.runs if "://" in self.runs else self.place / self.runs
        return Store(f"{below}/{self.name}")

    def start(self, *points: dict[str, Any]) -> Process:
        """Start it in a process group of its own, disturbed at `points`.

        By `python -m tailor` in the soak, or when it has an environment of its own, which Ray may read on its import.
        """
        words = ["run", "recipe.yaml", f"save.to={self.runs}/{self.name}", *self.overrides]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": PATHS,
            "DISTURB": json.dumps(points),
            **self.environment,
        }
        if not self.environment and not os.environ.get("SOAK"):
            return ForkedCommand(words, cwd=self.place, env=environment, start_new_session=True)
        return subprocess.Popen(
            [sys.executable, "-m", "tailor", *words],
            cwd=self.place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *points: dict[str, Any]) -> Ended:
        return ended(self.start(*points))

    def finish(self, *points: dict[str, Any]) -> Ended:
        """As a call; the run must come to its end."""
        result = self(*points)
        assert result.code == 0, result.err + result.out
        return result

    def killed_at(self, *points: dict[str, Any]) -> None:
        """Run until the point at which it kills itself."""
        result = self(*points)
        assert result.code == -signal.SIGKILL, f"{points} was not reached:\n{result.err}{result.out}"

    def killed_after(self, seconds: float, *, group: bool = False) -> bool:
        """SIGKILL after so long, to the command or to its whole group. False when it had ended before."""
        process = self.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        result = ended(process)
        assert result.code in (0, -signal.SIGKILL), result.err + result.out
        return result.code != 0

    def wait_for(self, process: Process, step: int) -> None:
        """Until the log has the training record of this step."""
        self.wait_until(process, lambda: self.step() >= step)

    def step(self) -> int:
        """The newest step of the log."""
        return max((record["step"] for record in read(self.run) if record["kind"] == "train"), default=0)

    def wait_until(self, process: Process, there: Callable[[], bool]) -> None:
        """While the command is at work."""
        deadline = time.monotonic() + PATIENCE
        while not there():
            if process.poll() is not None:
                raise AssertionError("the command ended before:\n" + "".join(process.communicate()))
            assert time.monotonic() < deadline
            time.sleep(0.02)


def ended(process: Process) -> Ended:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"the command did not end:\n{out}{err}") from None
    return Ended(process.returncode, out, err)


def processes_of(session: int) -> list[str]:
    """Command lines of the processes that were started below a command, by the session that it leads."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]


def moments(seed: int, number: int, longest: float) -> list[float]:
    """Random seconds after which a command is killed."""
    generator = random.Random(seed)
    return [generator.uniform(0.0, longest) for _ in range(number)]


def comparable_records(run: Store) -> list[dict[str, Any]]:
    """The records of a run's log without the values that depend on time or on the machine's memory."""
    return [
        {key: value for key, value in record.items() if key not in OF_THE_CLOCK}
        for record in read(run)
        if record["kind"] in COMPARED
    ]


def best_step(run: Store) -> int | None:
    newest = run.join("checkpoints").names()[-1]
    step: int | None = run.read_json(f"checkpoints/{newest}/state.json")["best_step"]
    return step


def left_by_a_finished_run(run: Store) -> dict[str, Any]:
    """What must be equal between a run that was killed and one that was not."""
    adapter = run.join("adapter")
    return {
        "status": run.read_json("status.json")["state"],
        "records": comparable_records(run),
        "best": best_step(run),
        "checkpoints": run.join("checkpoints").names(),
        "adapter": {
            name: hashlib.sha256(adapter.read_bytes(name)).hexdigest()
            for name in adapter.names()
            if name != COMMIT
        },
        "answers": run.read_text("evaluation/after.jsonl"),
        "files": [name for name in run.names() if name != "logs"],
    }


def unfinished(run: Store) -> list[str]:
    """Temporary files, and folders of checkpoints or artifacts without their marker."""
    found = [name for name in run.files() if "/.tmp-" in f"/{name}"]
    folders = [*(f"checkpoints/{name}" for name in run.join("checkpoints").names()), "adapter"]
    return found + [name for name in folders if not run.exists(f"{name}/{COMMIT}")]


def assert_equal_runs(run: Store, whole: Store) -> None:
    """The two runs left the same, and nothing unfinished."""
    left, expected = left_by_a_finished_run(run), left_by_a_finished_run(whole)
    for what in expected:
        assert left[what] == expected[what], what
    assert unfinished(run) == []
