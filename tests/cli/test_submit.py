"""`tailor submit`: what a cluster could not see is found before anything is sent, and what is sent stands alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tailor.cli.main import main
from tailor.cli.submit import load_recipe, seen
from tailor.errors import RecipeError
from tailor.spec import visibility
from tailor.spec.load import load_recipe as load

RECIPE = """\
model: {path: base}
data:
  train: [{path: rows.jsonl}, {path: s3://bucket/more.jsonl}]
  template: own.jinja
method: {name: sft}
optim: {learning_rate: 2e-4}
save: {to: runs/x, resume: runs/before}
"""
SHARED = "a folder that all machines of the cluster share, given with --shared"
TO_READ = "put it on s3://… or hf://…, or into a folder that they share, given with --shared"
OWN = f"is a different folder on each machine; write s3://…, or {SHARED}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "runs" / "before").mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def problems(*overrides: str, shared: tuple[str, ...] = ()) -> list[str]:
    try:
        load_recipe("recipe.yaml", overrides, seen(shared))
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_paths_that_the_cluster_cannot_see_are_reported_with_position_and_hint(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = f"is on this machine, and the cluster's machines cannot read it; {TO_READ}"
    expected = [
        f"recipe.yaml:1:15: model.path: base {unseen}",
        f"recipe.yaml:3:18: data.train.0.path: rows.jsonl {unseen}",
        f"recipe.yaml:7:12: save.to: runs/x ({place}/runs/x there) {OWN}",
        f"recipe.yaml:7:28: save.resume: runs/before {unseen}",
    ]
    assert main(["submit", "recipe.yaml", "--address", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.splitlines() == expected, "before any cluster is contacted"
    assert problems(shared=(".",)) == [], "the control: all paths are in a shared folder"
    assert problems(shared=("runs",)) == expected[:2]


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        (
            "save.to=memory://x",
            f"save.to: memory:// is only visible to one process; write s3://… or {SHARED}",
        ),
        ("save.to=hf://a/b", f"save.to: hf://a/b cannot be written; write s3://… or {SHARED}"),
        ("data.store=/tmp/tokens", f"data.store: /tmp/tokens {OWN}"),
        (
            "scale.address=auto",
            "scale.address: cannot be set in a job, which runs on the cluster that it is submitted to; use --address",
        ),
        ("data.train=[{path: rows.jsnl}]", "no such file or folder: rows.jsnl; did you mean rows.jsonl?"),
        ("model.path=org/base", None),
        ("save.to=s3://bucket/runs/x", None),
    ],
)
def test_one_by_one(override: str, refusal: str | None) -> None:
    found = problems(override, shared=(".",))
    assert [refusal in problem for problem in found] == [True] * bool(refusal), found


def test_a_shared_folder_that_is_not_mounted_here_is_not_checked() -> None:
    away = ["save.to=/mnt/all/x", "model.path=/mnt/all/base", "data.train=[{path: /mnt/all/rows.jsonl}]"]
    assert problems(*away, "save.resume=auto", shared=("/mnt/all",)) == []
    assert len(problems(*away, "save.resume=auto")) == 3


def test_what_is_sent_means_the_same_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job runs in another folder, and perhaps on another machine, so local names are absolute there."""
    view = seen(["runs", "base", "rows.jsonl"])
    texts = visibility.bundle(load_recipe("recipe.yaml", (), view), view, ".")
    assert texts["template.jinja"] == "{{ messages }}"
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name, text in texts.items():
        Path(name).write_text(text)
    sent = load("recipe.yaml")
    assert sent.save.to == str(place / "runs" / "x")
    assert sent.save.resume == str(place / "runs" / "before")
    assert sent.model.path == str(place / "base")
    assert [source.path for source in sent.data.train] == [
        str(place / "rows.jsonl"),
        "s3://bucket/more.jsonl",
    ]
    assert sent.data.template == "./template.jinja"


def test_a_deepspeed_json_travels_too(place: Path) -> None:
    (place / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    strategy = "scale={workers: 2, strategy: {name: deepspeed, stage: 2, config: %s}}"
    view = seen(["runs", "base", "rows.jsonl"])
    texts = visibility.bundle(load_recipe("recipe.yaml", [strategy % "zero.json"], view), view, ".")
    assert texts["deepspeed.json"] == (place / "zero.json").read_text()
    assert "config: ./deepspeed.json" in texts["recipe.yaml"]
    everything = seen(["."])
    texts = visibility.bundle(
        load_recipe("recipe.yaml", [strategy % "zero.json"], everything), everything, "."
    )
    assert "deepspeed.json" not in texts
    assert f"config: {place}/zero.json" in texts["recipe.yaml"]
    (found,) = problems(strategy % "none.json", shared=("runs", "base", "rows.jsonl"))
    assert found.endswith(
        f"scale.strategy.config: none.json is not a file that the cluster's machines can read; {TO_READ}"
    )


@pytest.mark.parametrize("words", [("list", "a-job"), ("logs",), ("stop",)])
def test_jobs_with_the_wrong_number_of_names(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", *words]) == 2
    assert re.match(
        rf"tailor: `tailor jobs {words[0]}` takes (no job name|the name of a job)\n  hint: ",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (
            "http://127.0.0.1:9",
            (
                "cannot connect to the Ray job server at http://127.0.0.1:9: [Errno 111] Connection refused\n"
                "  hint: set the dashboard's address with --address"
            ),
        ),
        (
            "ray://127.0.0.1:10001",
            (
                "ray://127.0.0.1:10001 is not the address of a job server\n"
                "  hint: use the address of Ray's dashboard"
            ),
        ),
    ],
)
def test_an_unreachable_job_server_is_an_error(
    address: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.environ.get("RAY_AUTH_MODE")
    try:
        assert main(["jobs", "list", "--address", address]) == 2
    finally:
        if before is None:
            os.environ.pop("RAY_AUTH_MODE", None)
    assert capsys.readouterr().err.startswith(f"tailor: {error}")
