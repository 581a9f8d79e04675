"""`tailor run`, `runs` and `show`, as a user meets them: in a process of their own, without a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.helpers.commands import ForkedCommand
from tests.helpers.models import tiny_llama

pytestmark = pytest.mark.slow

RECIPE = """\
model: {path: base, adapter: {rank: 4}}
data: {train: [{path: rows.jsonl}], holdout: 0.2, max_length: 128}
method: {name: sft}
optim: {learning_rate: 0.003}
train: {steps: 6, batch_size: 2, precision: fp32}
evaluate: {generation: {limit: 3, max_new_tokens: 4, samples: 2}}
save: {to: runs/first, every: 2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_llama(folder / "base")
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(60):
            turns = [
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": f"[bold]{i}[/bold]"},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def environment() -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    return {**os.environ, **own}


def start(place: Path, *arguments: str) -> ForkedCommand:
    return ForkedCommand(arguments, cwd=place, env=environment())


def tailor(place: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(place, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode is not None
    return process.returncode, out, err


@pytest.fixture(scope="module")
def first(place: Path) -> tuple[int, str, str]:
    """The run that most tests look at, in an interpreter of its own."""
    command = [sys.executable, "-m", "tailor", "run", "recipe.yaml"]
    done = subprocess.run(
        command, cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_output_of_a_run(first: tuple[int, str, str], place: Path) -> None:
    code, out, err = first
    assert (code, err) == (0, "")
    for told in (
        r"data prepared in .* training examples with .* tokens .*, .* evaluation examples",
        r"step 1/6  loss \d",
        r"step 6/6  loss \d",
        r"Training loss +\d\.\d+ → \d\.\d+",
        r"Exact match +\d.* before → \d.* after",
        r"run folder +runs/first\n",
        r"tailor chat runs/first",
    ):
        assert re.search(told, out), f"{told} in\n{out}"
    assert "\x1b" not in out  # no control codes where there is no terminal
    assert "[bold]" in out  # the data's own brackets are no markup


def test_the_folder_holds_everything(first: tuple[int, str, str], place: Path) -> None:
    run = place / "runs" / "first"
    expected = "adapter checkpoints data.json environment.json evaluation loss.png metrics.jsonl plan.json"
    expected += " recipe.yaml report.html status.json tensorboard"
    assert set(expected.split()) <= {path.name for path in run.iterdir()}
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"], status["error"]) == ("finished", 6, 6, None)
    assert list(status["timings"]) == [
        "check_model",
        "check_data",
        "prepare",
        "plan",
        "workers",
        "model",
        "answers_before",
        "first_step",
    ]
    assert "HOME" not in (run / "environment.json").read_text()


def test_a_finished_run_is_reported(first: tuple[int, str, str], place: Path) -> None:
    before = (place / "runs/first/metrics.jsonl").read_bytes()
    code, out, err = tailor(place, "run", "recipe.yaml")
    assert (code, err) == (0, "")
    assert "The run at runs/first was finished before: step 6 of 6." in out
    assert "tailor chat runs/first" in out
    assert (place / "runs/first/metrics.jsonl").read_bytes() == before


def test_another_recipe_is_refused(first: tuple[int, str, str], place: Path) -> None:
    code, _, err = tailor(place, "run", "recipe.yaml", "optim.learning_rate=0.5")
    assert code == 2
    assert "optim.learning_rate: 0.003 in the run, 0.5 in this recipe" in err
    assert "Traceback" not in err


def test_the_resolved_recipe_repeats_the_run(first: tuple[int, str, str], place: Path) -> None:
    assert tailor(place, "run", "runs/first/recipe.yaml", "save.to=runs/again")[0] == 0
    first_losses, again = (losses(place / "runs" / name) for name in ("first", "again"))
    assert first_losses == again
    assert len(again) == 6


@pytest.mark.parametrize(
    ("stop", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak), (signal.SIGTERM, 143)]
)
def test_an_interrupted_run_prints_one_line_and_resumes(place: Path, stop: int, code: int) -> None:
    name = f"cut-{code}"
    arguments = ("run", "recipe.yaml", f"save.to=runs/{name}", "train.steps=60", "evaluate.generation=null")
    process = start(place, *arguments)
    metrics = place / f"runs/{name}/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and '"step":4,' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(stop)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    told = re.fullmatch(
        r"tailor: interrupted at step (\d+) of 60; the same command continues from the last checkpoint, step (\d+)\n",
        err,
    )
    assert told, err
    status = json.loads((place / f"runs/{name}/status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", int(told[1]))
    assert status["ended"]

    code, out, _ = tailor(place, *arguments)
    assert code == 0
    assert f"resuming from step {told[2]}\n" in out
    steps = [
        json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"kind":"train"' in line
    ]
    assert steps == list(range(1, 61))


def test_an_interrupted_run_without_a_checkpoint(place: Path) -> None:
    from tailor.cli.display import Progress
    from tailor.cli.run import stopped
    from tailor.spec.load import load_recipe

    recipe = load_recipe(place / "recipe.yaml", [f"save.to={place / 'runs/none'}"], check_files=False)
    progress = Progress()
    assert "before training began; there is no checkpoint yet" in stopped(recipe, progress)
    progress.start(60, 7)
    assert (
        "at step 7 of 60; there is no checkpoint yet, so the same command starts again from step 0"
        in stopped(recipe, progress)
    )


def test_places_where_no_run_can_be_kept_are_refused(place: Path) -> None:
    before = sorted(path.name for path in place.iterdir())
    for to, told in (
        ("memory://run", "is lost when the command ends"),
        (".", "is not empty and not a run folder"),
    ):
        code, _, err = tailor(place, "run", "recipe.yaml", f"save.to={to}")
        assert code == 2
        assert told in err
        assert "hint: " in err
    assert sorted(path.name for path in place.iterdir()) == before


def test_text_is_continued_and_an_empty_holdout_is_reported(place: Path) -> None:
    (place / "lines.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(20)))
    data = ("data.train=[{path: lines.jsonl, format: text}]", "data.holdout=0.0001")
    rest = ("train.steps=2", "evaluate.generation=null", "save.to=runs/text")
    code, out, err = tailor(place, "run", "recipe.yaml", *data, *rest)
    assert (code, err) == (0, "")
    assert "data.holdout: 0.0001 selects no evaluation row from 20 rows; raise data.holdout\n" in out
    assert "tailor generate runs/text --plain --prompt" in out
    assert "tailor chat" not in out


def test_a_failure_is_printed_and_recorded(place: Path) -> None:
    arguments = (
        "run",
        "recipe.yaml",
        "save.to=runs/bad",
        "optim.learning_rate=1e30",
        "evaluate.generation=null",
    )
    code, _, err = tailor(place, *arguments)
    assert code == 1
    assert re.match(r"tailor: step \d: the loss is", err)
    assert "Traceback" not in err
    status = json.loads((place / "runs/bad/status.json").read_text())
    assert status["state"] == "failed"
    assert "the loss is" in status["error"]
    assert "Traceback" in (place / "runs/bad/logs/worker-0.log").read_text()


def test_runs_and_show(first: tuple[int, str, str], place: Path) -> None:
    code, out, err = tailor(place, "runs")
    assert (code, err) == (0, "")
    assert re.search(r"first +finished +6/6 +\d\.\d{4} +\d\.\d{4} +sft, LoRA of rank 4 +base", out)
    code, out, err = tailor(place, "show", "runs/first")
    assert (code, err) == (0, "")
    for told in ("Checkpoints", "training loss by step", "Exact match", "Batch", "tailor chat runs/first"):
        assert told in out
    code, _, err = tailor(place, "show", "runs/frist")
    assert code == 2
    assert "did you mean runs/first" in err
    code, _, err = tailor(place, "runs", "nowhere")
    assert code == 2
    assert "no folder" in err


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_events(place: Path) -> None:
    """Every line of stdout is a valid event, the texts go to stderr, and the events tell what the files tell."""
    final = "evaluate.final={tasks: [{name: perplexity}], limit: 2, fail_if: {perplexity: '> 0'}}"
    words = ("run", "recipe.yaml", "save.to=runs/events", "evaluate.every=3", "--json")
    code, out, err = tailor(place, *words, final)
    assert code == 3
    events = checked_events(out)
    kinds = [event["event"] for event in events if event["event"] not in ("message", "step")]
    expected = "start plan generation checkpoint evaluation artifact final_evaluation end"
    assert list(dict.fromkeys(kinds)) == expected.split()
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [2, 4, 6]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["loss"] for event in steps] == losses(place / "runs/events")
    (plan,) = (event["plan"] for event in events if event["event"] == "plan")
    stored = json.loads((place / "runs/events/plan.json").read_text())
    assert {**plan, "format_version": 1} == stored
    (evaluated,) = (event for event in events if event["event"] == "final_evaluation")
    assert evaluated["results"]["failed"]
    assert (events[-1]["state"], events[-1]["exit_code"]) == ("failed", 3)
    assert "perplexity" in events[-1]["error"]["message"]
    assert "step 6/6  loss" in err
    assert "Training loss" in err

    code, out, _ = tailor(place, *words)  # finished before
    events = checked_events(out)
    assert [event["event"] for event in events if event["event"] != "message"] == ["start", "artifact", "end"]
    assert (code, events[-1]["state"], events[-1]["error"]) == (0, "finished", None)


@pytest.mark.soak
def test_events_of_an_interrupted_run(place: Path) -> None:
    process = start(
        place,
        "run",
        "recipe.yaml",
        "save.to=runs/cut-events",
        "train.steps=600",
        "evaluate.generation=null",
        "--json",
    )
    metrics = place / "runs/cut-events/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and '"step":4,' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    last = checked_events(out)[-1]
    assert process.returncode == 143
    assert (last["event"], last["state"], last["exit_code"]) == ("end", "interrupted", 143)
    assert "tailor: interrupted at step" in err


def checked_events(out: str) -> list[dict[str, Any]]:
    published = json.loads((Path(__file__).parents[2] / "docs/output.schema.json").read_text())
    schema = jsonschema.Draft202012Validator({**published, "$ref": "#/$defs/run"})
    events = [json.loads(line) for line in out.splitlines()]
    for event in events:
        assert (found := jsonschema.exceptions.best_match(schema.iter_errors(event))) is None, found
    return events
