"""`--json`: one document on stdout that is valid against the published schema of the command, and errors too."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tailor.cli.display import Display
from tailor.cli.events import EVENTS
from tailor.cli.main import COMMANDS, main
from tailor.cli.output import JsonStdout, Output, Written
from tailor.cli.schema import output_schema_text
from tailor.errors import DataError
from tests.helpers.models import byte_tokenizer
from tests.helpers.run_folders import make_run, train_record

PUBLISHED = Path(__file__).parents[2] / "docs/output.schema.json"
TEXT_ONLY = {"chat", "manifest", "schema", "serve"}
"""A conversation; a manifest and a schema, which are read by other programs already."""
RECIPE = """\
model: {path: model}
data:
  train: [{path: rows.jsonl}]
  max_length: 64
method: {name: sft}
optim: {learning_rate: 1e-3}
save: {to: runs/one}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    byte_tokenizer(Path("model"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    Path("model/config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 261, **sizes}))
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def schema(command: str) -> jsonschema.Draft202012Validator:
    """The validator of a command's output, from the published file."""
    everything = json.loads(PUBLISHED.read_text())
    return jsonschema.Draft202012Validator({**everything, "$ref": f"#/$defs/{command}"})


def written(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The document that a command writes, after the check against its schema."""
    assert main([*words, "--json"]) == code
    out = capsys.readouterr().out
    assert out.isascii()
    document = json.loads(out)
    errors = schema(words[0]).iter_errors(document)
    assert (found := jsonschema.exceptions.best_match(errors)) is None, found.message[:500]
    return document


def test_every_command_that_shows_something_has_it() -> None:
    without = {
        name
        for name, (module, _) in COMMANDS.items()
        if not hasattr(importlib.import_module(module), "OUTPUT")
    }
    assert without == TEXT_ONLY


def test_the_published_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--output"]) == 0
    assert capsys.readouterr().out == PUBLISHED.read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(PUBLISHED.read_text()))
    assert main(["schema", "--output", "runs"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["title"] == "tailor runs --json"
    assert main(["schema", "--output", "chat"]) == 2
    assert "chat has no --json" in capsys.readouterr().err
    assert main(["schema", "--output", "runs", "--reference"]) == 2


def test_control_the_schema_rejects_other_documents() -> None:
    good = {"folder": "runs", "runs": []}
    schema("runs").validate(good)
    for bad in ({"folder": "runs"}, {**good, "more": 1}, {"folder": 1, "runs": []}, {"error": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            schema("runs").validate(bad)


def test_plan(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(capsys, "plan", "recipe.yaml")
    assert (plan["max_length"], plan["steps"]) == (64, plan["steps_per_epoch"])
    assert plan["model"]["path"].endswith("model")


def test_validate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text(RECIPE.replace("1e-3", "-1").replace("max_length", "max_lenght"))
    found = written(capsys, "validate", "wrong.yaml", "recipe.yaml", code=2)["recipes"]
    assert [(one["file"], one["ok"]) for one in found] == [("wrong.yaml", False), ("recipe.yaml", True)]
    problems = found[0]["problems"]
    assert [problem["key"] for problem in problems] == ["data.max_lenght", "optim.learning_rate"]
    assert problems[0]["line"] == 4


def test_validate_with_data_reports_every_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.jsonl").write_text("{broken\n" + Path("rows.jsonl").read_text())
    Path("lost.yaml").write_text(RECIPE.replace("rows.jsonl", "bad.jsonl"))
    found = written(capsys, "validate", "--data", "lost.yaml", "recipe.yaml", code=2)["recipes"]
    assert [one["ok"] for one in found] == [False, True]
    assert "1 of 21 rows cannot be read" in found[0]["error"]["message"]
    assert found[1]["data"]["sources"][0]["kept"] == 20


def test_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = written(capsys, "data", "report", "recipe.yaml")
    assert report["train"]["examples"] == report["sources"][0]["kept"] == 20
    assert (report["error"], report["reused"]) == (None, False)
    doctor = written(capsys, "data", "doctor", "recipe.yaml")
    assert (doctor["rows"], doctor["error"]) == (20, 0)
    preview = written(capsys, "data", "preview", "recipe.yaml", "--rows", "2")
    first = preview["rows"][0]
    assert first["name"] == "rows.jsonl:1"
    assert "".join(piece["text"] for piece in first["examples"][0] if piece["supervised"]).startswith(" 1")
    (place / "rows.jsonl").write_text("{broken\n" + Path("rows.jsonl").read_text())
    report = written(capsys, "data", "report", "recipe.yaml", code=2)
    assert report["sources"][0]["unreadable"]["bad_json"]["count"] == 1
    assert "1 of 21 rows" in report["error"]["message"]


def test_runs_and_show(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("runs/good")
    make_run("runs/odd").write_text("status.json", "{")
    listed = written(capsys, "runs")["runs"]
    assert [(run["run"], run["state"]) for run in listed] == [("good", "finished"), ("odd", "damaged")]
    assert (listed[0]["step"], listed[0]["steps"]) == (60, 60)
    assert "status.json is damaged" in listed[1]["error"]["message"]
    shown = written(capsys, "show", "runs/good")
    assert shown["status"]["state"] == "finished"
    assert shown["last"]["train"]["step"] == 60
    assert shown["plan"]["method"] == {"name": "sft"}
    failed = written(capsys, "show", "runs/god", code=2)
    assert "did you mean runs/good" in failed["error"]["hint"]


def test_init(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, "init", "new.yaml") == {"file": "new.yaml", "templates": None}
    assert "chatml" in written(capsys, "init", "--templates")["templates"]


def test_values_that_json_lacks_become_null(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("runs/odd")
    run.append_text("metrics.jsonl", json.dumps({**train_record(61), "loss": None, "time": 1.0}) + "\n")
    assert written(capsys, "runs")["runs"][0]["loss"] is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["plan", "nothing.yaml"], 2, "no such file"),
        (["run", "nothing.yaml"], 2, "no such file"),
        (["show"], 2, "the following arguments are required: run"),
        (["generate", "runs/none", "--prompt", "x", "--top-p", "2"], 2, "--top-p"),
        (["evaluate", "runs/none"], 2, "runs/none"),
        (["merge", "runs/none"], 2, "runs/none"),
        (["average", "runs/none", "runs/none", "--to", "x"], 2, "runs/none"),
        (["export", "runs/none", "--to", "x"], 2, "runs/none"),
        (["push", "runs/none", "a/b"], 2, "runs/none"),
        (["embed", "runs/none", "rows.jsonl", "x.parquet"], 2, "runs/none"),
        (["mine", "runs/none", "rows.jsonl", "x.jsonl"], 2, "runs/none"),
        (["jobs", "list", "--address", "http://127.0.0.1:9"], 2, "127.0.0.1:9"),
        (["jobs", "logs"], 2, "takes the name of a job"),
        (["submit", "nothing.yaml"], 2, "no such file"),
        (["init", "recipe.yaml"], 2, "exists already"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_errors(
    words: list[str], code: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = written(capsys, *words, code=code)["error"]
    assert error["exit_code"] == code
    assert message in error["message"]


def test_an_internal_error_is_json_too(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("password=hunter2x")

    monkeypatch.setattr("tailor.cli.plan.load_to_run", broken)
    error = written(capsys, "plan", "recipe.yaml", code=70)["error"]
    assert error["message"] == "internal error: KeyError: 'password=***'"


def test_jobs(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tailor.onray import jobs

    job = jobs.Job("lora-1", "failed", 1.0, 2.0, "s3://b/run", 1, "code 1; token=abcdefgh12345678")

    class Client:
        address = "http://head:8265"

        def __init__(self, _: Any) -> None: ...

        def all(self) -> list[jobs.Job]:
            return [job]

        def job(self, _: str) -> jobs.Job:
            return job

        def follow(self, _: str, show: Any) -> int:
            show("step 1\n")
            return 1

    monkeypatch.setattr(jobs, "Jobs", Client)
    listed = written(capsys, "jobs", "list")["jobs"]
    assert [(one["name"], one["exit_code"], one["state"]) for one in listed] == [("lora-1", 1, "failed")]
    assert main(["jobs", "logs", "lora-1", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "step 1\n" in err
    assert json.loads(out)["jobs"] == listed


def test_what_others_print_is_not_in_the_output(place: Path) -> None:
    """Prints of libraries, of C code and of child processes go to stderr."""
    program = """
import os, subprocess, sys
from tailor.cli import plan
from tailor.cli.main import main
def noisy(*_):
    print("library"); os.write(1, b"c code\\n"); subprocess.run(["echo", "child"])
    return load(*_)
load, plan.load_to_run = plan.load_to_run, noisy
sys.exit(main(sys.argv[1:]))
"""
    environment = {**os.environ, "PYTHONPATH": str(PUBLISHED.parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", "recipe.yaml", "data.max_length=0", "--json"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["problems"][0]["key"] == "data.max_length"
    assert {"library", "c code", "child"} <= set(done.stderr.splitlines())


class _Events:
    """A command that writes events."""

    OUTPUT = Output(Written, events=True)


def test_events_outlive_their_reader(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    stdout = JsonStdout(open(write, "w", buffering=1), events=True)  # noqa: SIM115
    for number in range(3):
        stdout.write({"event": "message", "number": number})
    stdout.end(0)


def test_a_signal_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """A handler may write an event, while the same thread writes another one."""
    with (tmp_path / "out").open("w") as file:

        class Interrupting:
            def write(self, text: str) -> None:
                file.write(text[:5])
                if "first" in text:
                    signal.raise_signal(signal.SIGUSR1)
                file.write(text[5:])

            def flush(self) -> None:
                file.flush()

        stdout = JsonStdout(Interrupting(), events=True)
        before = signal.signal(signal.SIGUSR1, lambda *_: stdout.write({"event": "second"}))
        try:
            stdout.write({"event": "first"})
        finally:
            signal.signal(signal.SIGUSR1, before)
    lines = [json.loads(line)["event"] for line in (tmp_path / "out").read_text().splitlines()]
    assert lines == ["first", "second"]


@pytest.mark.parametrize(
    ("result", "state", "code"),
    [
        (0, "finished", 0),
        (130, "interrupted", 130),
        (143, "interrupted", 143),
        (3, "failed", 3),
        (DataError("no rows", hint="add some"), "failed", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (ValueError("odd"), "failed", 70),
    ],
    ids=str,
)
def test_the_last_event_tells_how_it_ended(
    result: Any, state: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(args: Namespace) -> int:
        if isinstance(result, BaseException):
            raise result
        return result

    if isinstance(result, BaseException):
        with pytest.raises(type(result)):
            _Events.OUTPUT.run(execute, Namespace())
    else:
        assert _Events.OUTPUT.run(execute, Namespace()) == code
    (line,) = capsys.readouterr().out.splitlines()
    event = json.loads(line)
    schema("run").validate(event)
    assert (event["event"], event["state"], event["exit_code"]) == ("end", state, code)
    assert (event["error"] is None) == (code == 0)


def test_events_hide_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    def execute(args: Namespace) -> int:
        args.json.write({"event": "message", "message": "at https://user:secretpass@host"})
        return 0

    _Events.OUTPUT.run(execute, Namespace())
    assert "secretpass" not in capsys.readouterr().out


def test_every_record_that_is_shown_has_an_event() -> None:
    """The kinds that `Display.record` shows, and those of checkpoints and artifacts."""
    import inspect
    import re

    shown = set(re.findall(r'case "(\w+)"', inspect.getsource(Display.record)))
    assert shown - {"status"} <= set(EVENTS)
    assert {"checkpoint", "artifact", "failure"} <= set(EVENTS)


def test_the_text_of_one_command_equals_the_published_one() -> None:
    one, everything = json.loads(output_schema_text("show")), json.loads(PUBLISHED.read_text())
    assert one["title"] == everything["$defs"]["show"]["title"]
