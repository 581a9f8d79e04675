"""The real command with everything on an S3 protocol server: sources, tokens and the run's folder."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tailor.cli.main import main
from tailor.store import Store, run_folder
from tests.helpers.commands import ForkedCommand
from tests.helpers.curves import adapter, curve
from tests.helpers.models import tiny_llama
from tests.helpers.s3 import checking_credentials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = os.getcwd()
RECIPE = """\
model: {path: base, adapter: {rank: 4, dropout: 0.1}}
data: {train: [{path: rows.jsonl}], holdout: 0.2, max_length: 128}
method: {name: sft}
optim: {learning_rate: 0.003}
train: {steps: 60, batch_size: 2, micro_batch_size: 1, precision: fp32}
evaluate: {every: 15}
save: {to: runs/local, every: 5, keep: 2}
"""


@dataclass
class Place:
    """A folder with a recipe, its model and its rows, which stand on the server too."""

    folder: Path
    bucket: str

    def at(self, name: str) -> list[str]:
        """Overrides that take everything to the server."""
        return [
            f"data.train=[{{path: {self.bucket}/rows.jsonl}}]",
            f"data.store={self.bucket}/tokens",
            f"save.to={self.bucket}/runs/{name}",
        ]

    def start(self, *arguments: str) -> ForkedCommand:
        environment = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": ROOT, "TAILOR_CACHE": str(self.folder / "cache")}
        return ForkedCommand(arguments, cwd=self.folder, env={**os.environ, **environment})

    def tailor(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=150)
        assert process.returncode is not None
        return process.returncode, out, err


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an undisturbed local run."""
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "base")
    rows = (
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i} it is"}]}
        for i in range(60)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    code, _, err = Place(folder, "").tailor("run", "recipe.yaml")
    assert (code, err) == (0, "")
    return folder


@pytest.fixture
def place(local: Path, s3: str) -> Place:
    Store(s3).put_file(local / "rows.jsonl", "rows.jsonl")
    return Place(local, s3)


def test_a_run_on_s3_equals_a_local_one_and_every_command_reads_it(
    place: Place, local: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other on one run, because each takes seconds; those that only read in this process."""
    monkeypatch.chdir(local)
    monkeypatch.setenv("TAILOR_CACHE", str(local / "cache"))

    def here(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return (code, *capsys.readouterr())

    for command in (("validate",), ("plan",), ("data", "report")):
        assert here(*command, "recipe.yaml", *place.at("run"))[0] == 0, command
    assert Store(f"{place.bucket}/tokens").names(), "prepared on the server"
    code, out, err = place.tailor("run", "recipe.yaml", *place.at("run"))
    assert (code, err) == (0, "")
    run = f"{place.bucket}/runs/run"
    assert "data already prepared" in out
    assert f"tailor chat {run}" in out
    assert curve(run) == curve(str(local / "runs/local"))
    assert adapter(run) == adapter(str(local / "runs/local"))
    assert run_folder.checkpoints(Store(run)) == ["step-00000055", "step-00000060"]
    leftovers = {"checkpoints", "adapter", "tensorboard"}
    expected = {path.name for path in (local / "runs/local").iterdir()} - {".lock"}
    assert {*Store(run).names()} == expected >= leftovers
    assert not list((local / "cache" / "uploads").glob("*/*")), "no copy stays when it was uploaded"

    code, out, _ = here("run", "recipe.yaml", *place.at("run"))
    assert code == 0
    assert "was finished before: step 60 of 60" in out
    for command, told in (
        (("show", run), "finished"),
        (("runs", f"{place.bucket}/runs"), "60/60"),
        (("generate", run, "--prompt", "5?", "--max-new-tokens", "3"), ""),
    ):
        code, out, _ = here(*command)
        assert code == 0, command
        assert told in out
    made = f"{place.bucket}/made"
    short = ("limit=3", "decoding.max_new_tokens=3")
    for command in (
        ("evaluate", run, *short),
        ("evaluate", "runs/local", *short, "--to", f"{made}/evaluation"),
        ("merge", run),
        ("merge", "runs/local", "--to", f"{made}/merged"),
        ("average", run, f"{run}/checkpoints/step-00000055", "--to", f"{made}/mean"),
        ("export", run, "--to", f"{made}/export", "--base-id", "me/base"),
        ("push", run, "me/shop", "--dry-run"),
    ):
        assert here(*command)[0] == 0, command
    for ours, theirs in (
        (f"{run}/evaluation/default/passages.jsonl", f"{made}/evaluation/passages.jsonl"),
        (f"{run}/merged/model.safetensors", f"{made}/merged/model.safetensors"),
    ):
        contents = [
            Store(place.bucket).read_bytes(one.removeprefix(f"{place.bucket}/")) for one in (ours, theirs)
        ]
        contents = [one.replace(f"{place.bucket}/rows.jsonl".encode(), b"rows.jsonl") for one in contents]
        assert contents[0].replace(b'"run"', b"") == contents[1].replace(b'"local"', b""), ours
    assert all(Store(made).is_committed(folder) for folder in ("evaluation", "merged", "mean", "export"))
    assert Store(f"{run}/evaluation").names() == ["default"], "nothing unfinished is left"
    assert here("evaluate", f"{place.bucket}/runs/rum", *short)[2] == (
        f"tailor: {place.bucket}/runs/rum does not exist\n  hint: did you mean {run}?\n"
    )
    Store(run).write_bytes("adapter/adapter_model.safetensors", adapter(run)[:-1])
    code, out, err = here("generate", run, "--prompt", "5?", "--max-new-tokens", "3")
    assert code == 2
    assert f"{run}/adapter/adapter_model.safetensors has " in err


def wait_for(checkpoints: int, run: Store, process: ForkedCommand) -> None:
    deadline = time.monotonic() + 90
    while len(run.join("checkpoints").names()) < checkpoints or not run_folder.checkpoints(run):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_on_s3_and_started_again_equals_undisturbed(place: Place, local: Path) -> None:
    run = Store(f"{place.bucket}/runs/killed")
    process = place.start("run", "recipe.yaml", *place.at("killed"))
    wait_for(2, run, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.exists(".lock"), "the control: it was killed while it held the lease"
    before = run_folder.checkpoints(run)
    assert before
    assert not run.exists("adapter/COMMIT"), "the control: it was not finished"

    code, out, err = place.tailor("run", "recipe.yaml", *place.at("killed"))
    assert (code, err) == (0, "")
    assert f"resuming from step {int(before[-1][5:])}\n" in out
    assert "is locked by" not in out, "the dead process of this machine did not keep it waiting"
    assert curve(run.url) == curve(str(local / "runs/local"))
    assert adapter(run.url) == adapter(str(local / "runs/local"))


def test_a_second_command_on_s3_reports_the_owner_of_the_lock(place: Place) -> None:
    first = place.start("run", "recipe.yaml", *place.at("held"), "train.steps=100000")
    run = Store(f"{place.bucket}/runs/held")
    wait_for(1, run, first)
    try:
        code, out, err = place.tailor("run", "recipe.yaml", *place.at("held"), "train.steps=100000")
        assert first.poll() is None
        assert code == 2
        assert f"another process is working on the run at {run.url}: process {first.pid} of" in err
        assert f"{run.url} is locked by process {first.pid}" in out
    finally:
        first.kill()
        first.communicate()


@pytest.mark.ray
@pytest.mark.soak
def test_two_ray_workers_on_s3(place: Place, local: Path) -> None:
    code, _, err = place.tailor(
        "run", "recipe.yaml", *place.at("two"), "scale.workers=2", "scale.cpus_per_worker=1"
    )
    assert (code, err) == (0, "")
    ours, theirs = curve(f"{place.bucket}/runs/two"), curve(str(local / "runs/local"))
    assert [record["kind"] for record in ours] == [record["kind"] for record in theirs]
    losses = [[record["loss"] for record in records if "loss" in record] for records in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert run_folder.checkpoints(Store(f"{place.bucket}/runs/two")) == ["step-00000055", "step-00000060"]


@pytest.mark.parametrize("fault", ["address", "bucket", "credentials", "source"])
def test_a_wrong_store_is_one_line_in_a_few_seconds(
    place: Place, fault: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, told, hint = place.at("wrong"), "", ""
    if fault == "bucket":
        overrides[2] = "save.to=s3://no-such-bucket-here/run"
        told, hint = "the bucket no-such-bucket-here does not exist", "create the bucket, or check the URL"
    elif fault == "source":
        overrides[0] = f"data.train=[{{path: {place.bucket}/nothing.jsonl}}]"
        told, hint = f"{place.bucket}/nothing.jsonl: does not exist", "check the URL"
    elif fault == "address":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        told, hint = (
            "Could not connect to the endpoint URL",
            "check the URL, AWS_ENDPOINT_URL and the network",
        )
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-private-text")
        told, hint = f"{place.bucket}/runs/wrong", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    began = time.monotonic()
    if fault == "credentials":
        with checking_credentials(s3_server):
            code, _, err = place.tailor("run", "recipe.yaml", *overrides)
    else:
        code, _, err = place.tailor("run", "recipe.yaml", *overrides)
    assert code == 2
    assert told in err
    assert hint in err
    assert err.startswith("tailor: ")
    assert err.count("\n") <= 2
    assert "Traceback" not in err
    assert "very-private-text" not in err
    assert time.monotonic() - began < 20
