"""The commands of the cluster guides run as they are printed: with a job server of paper here, with Ray in the soak test."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tailor.onray import jobs
from tailor.spec.load import load_recipe
from tests.helpers import s3
from tests.helpers.models import tiny_llama

ROOT = Path(__file__).parents[2]
GUIDES = ("cluster/README.md", "docs/clusters.md")
MY_RECIPE = """\
model: {path: BASE, adapter: {rank: 2}}
data: {train: [{path: ROWS}], template: chatml, max_length: 64}
method: {name: sft}
optim: {learning_rate: 1e-3}
train: {steps: 2, batch_size: 16}
save: {to: runs/my}
"""


def lines(guide: str, program: str) -> list[str]:
    """The printed commands of a program, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / guide).read_text(), flags=re.S)
    commands = [line.split("     #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in commands if re.match(rf"(\w+=\S+ )*{program} ", line)]


class Server:
    """Takes jobs as Ray's job server does, and keeps the files that came with each."""

    def __init__(self) -> None:
        self.sent: list[dict[str, str]] = []

    def submit_job(self, *, runtime_env: dict[str, Any], **_: Any) -> None:
        folder = Path(runtime_env["working_dir"])
        self.sent.append({file.name: file.read_text() for file in folder.iterdir()})


@pytest.mark.parametrize("shared", [None, "."])
@pytest.mark.parametrize("guide", GUIDES)
def test_what_is_submitted_runs_on_another_machine(
    guide: str, shared: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shared: the folder of the guide's command, or all of the current one, as on a cluster of one machine."""
    server, elsewhere = Server(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(jobs, "_connect", lambda address: server)
    monkeypatch.chdir(ROOT)
    (tmp_path / "my.yaml").write_text(
        MY_RECIPE.replace("BASE", "org/base").replace("ROWS", "s3://bucket/rows.jsonl")
    )
    commands = lines(guide, "tailor submit")
    assert commands
    for command in commands:
        words = [str(tmp_path / "my.yaml") if word == "my.yaml" else word for word in shlex.split(command)]
        if "--shared" in words and shared is not None:
            words[words.index("--shared") + 1] = shared
        elif shared is not None:
            words += ["--shared", shared]
        written = load_recipe(words[2], [word for word in words[3:] if "=" in word], check_files=False)
        assert main([*words[1:], *(["--detach"] if "--detach" not in words else [])]) == 0, command
        for name, text in server.sent[-1].items():
            (elsewhere / name).write_text(text)
        with monkeypatch.context() as patch:
            patch.chdir(elsewhere)
            sent = load_recipe("recipe.yaml", check_files=words[2].startswith("recipes/quickstart"))
        assert sent.data.template == written.data.template, "a built-in template stays a name"
        assert sent.save.to == written.save.to


def test_rays_commands_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own command line parses them."""
    from click import Command, UsageError
    from ray.scripts.scripts import cli

    def parse(command: str) -> None:
        words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)][1:]
        found: Any = cli
        while not isinstance(found, Command) or hasattr(found, "commands"):
            found = found.commands[words.pop(0)]
        found.make_context("ray", words)

    commands = [command for guide in GUIDES for command in lines(guide, "ray")]
    commands += re.findall(r"`(ray start [^`]*)`", "".join((ROOT / guide).read_text() for guide in GUIDES))
    assert {"start", "job"} <= {command.split()[1] for command in commands}
    for command in commands:
        parse(command)
    with pytest.raises(UsageError):
        parse("ray start --heads")  # the control


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_guides_work_as_printed(tmp_path: Path) -> None:
    """Only addresses, ports and the length of the training are replaced."""
    port, dashboard, metrics = _free_port(), _free_port(), _free_port()
    names = {"HEAD": "127.0.0.1", "10.0.0.5": "127.0.0.1", "6379": str(port), "8265": str(dashboard)}
    names |= {"8080": str(metrics), "scale.workers=8": "scale.workers=1", "s3://bucket": "s3://tailor"}

    def printed(command: str, more: str = "") -> str:
        for old, new in names.items():
            command = command.replace(old, new)
        return f"{command} {more}\n"

    tiny_llama(tmp_path / "base")
    rows = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 64
    (tmp_path / "rows.jsonl").write_text(rows)
    recipe = MY_RECIPE.replace("BASE", str(tmp_path / "base")).replace("ROWS", str(tmp_path / "rows.jsonl"))
    (tmp_path / "my.yaml").write_text(recipe)
    (start,) = lines("cluster/README.md", "ray start")
    (submit,) = (line for line in lines("cluster/README.md", "tailor submit") if "quickstart" in line)
    (job,) = lines("docs/clusters.md", "ray job submit")
    (run,) = lines("docs/clusters.md", "tailor run")[-1:]
    short = "train.steps=2 train.batch_size=2 evaluate.generation=null evaluate.every=null save.every=null"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, s3.server() as address:
        script = (
            "set -e\n"
            "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(openssl rand -hex 32)\nexport RAY_JOB_STOP_WAIT_TIME_S=600\n"
            + printed(
                start,
                f"--port {port} --dashboard-port {dashboard} --num-cpus 2 --object-store-memory 100000000",
            )
            + printed(submit, short)
            + printed(
                submit.replace("--shared recipes", "--shared .").replace("runs/quickstart", "runs/again"),
                short,
            )
            + "mkdir -p $HOME/.ray; printf %s $RAY_AUTH_TOKEN > $HOME/.ray/auth_token; unset RAY_AUTH_TOKEN RAY_AUTH_MODE\n"
            + printed("tailor jobs list --address http://HEAD:8265")
            + f"cd {tmp_path}\n"
            + printed(run.replace("runs/my", "runs/joined"))
            + "export RAY_AUTH_MODE=token\n"
            + printed(job.replace("runs/my", "runs/job"))
            + "tailor runs s3://tailor/runs\n"
        )
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            **s3.CREDENTIALS,
            "AWS_ENDPOINT_URL": address,
            "HOME": folder,
            "RAY_TMPDIR": folder,
            "TAILOR_CACHE": f"{folder}/cache",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        try:
            make = "import fsspec; fsspec.filesystem('s3').mkdir('tailor')"
            subprocess.run([sys.executable, "-c", make], env=environment, check=True)
            with (tmp_path / "log").open("w") as log:
                done = subprocess.run(
                    ["bash", "-c", script],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    check=False,
                    timeout=800,
                )
            text = (tmp_path / "log").read_text()
            assert done.returncode == 0, text[-4000:]
            assert text.count("finished  ") >= 4, text[-4000:]
        finally:
            for process in Path("/proc").glob(
                "[0-9]*"
            ):  # Ray's processes of this test, which have its folder in their names
                try:
                    if folder.encode() in (process / "cmdline").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
                except OSError:
                    continue
