"""A run resumes when its sources are gone, from the tokens that it has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.helpers.models import tiny_llama

STEPS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its sources, and the finished run."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_llama(folder / "base")
    (folder / "rows").mkdir()
    for name, count, kind in (("rows/a", 9, "old"), ("rows/b", 5, "new"), ("held", 3, "other")):
        turns = (
            [
                {"role": "user", "content": f"Is {kind} {n} it?"},
                {"role": "assistant", "content": f"Yes, {n}."},
            ]
            for n in range(count)
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    (folder / "recipe.yaml").write_text(
        "model: {path: base}\n"
        "data: {train: [{path: rows}], evaluation: [{path: held.jsonl}], max_length: 64}\n"
        "method: {name: sft}\n"
        "optim: {learning_rate: 1e-3}\n"
        f"train: {{steps: {STEPS}, batch_size: 2}}\n"
        "evaluate: {every: 2}\n"
        "save: {to: runs/one, every: 1, keep: 9}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "recipe.yaml"]) == 0
    (folder / "runs/tokens").rename(folder / "tokens")  # data.json names this place
    return folder


@pytest.fixture
def broken(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the run as it was after two steps."""
    folder = tmp_path / "broken"
    shutil.copytree(finished, folder)
    run = folder / "runs/one"
    for name in ("model", "checkpoints/step-00000003", "checkpoints/step-00000004"):
        shutil.rmtree(run / name)
    (run / "status.json").unlink()
    (folder / "tokens").rename(folder / "runs/tokens")
    monkeypatch.chdir(folder)
    return folder


def losses(folder: Path, run: str = "runs/one") -> list[tuple[int, str, float]]:
    lines = (folder / run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [
        (one["step"], kind, one["loss"])
        for one in records
        if (kind := one.get("kind")) in ("train", "evaluation")
    ]


def _one_file(folder: Path) -> None:
    (folder / "held.jsonl").unlink()


def _all(folder: Path) -> None:
    shutil.rmtree(folder / "rows")
    _one_file(folder)


def _content(folder: Path) -> None:
    for file in (folder / "rows").iterdir():
        file.unlink()


NOTE = "the run resumes with the tokens that it has"


def test_a_run_resumes_without_its_sources(
    finished: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _all(broken)
    assert main(["run", "recipe.yaml"]) == 0
    assert NOTE in capsys.readouterr().out
    assert losses(broken) == losses(finished)
    assert len({step for step, _, _ in losses(broken)}) == STEPS, "the control: it went on"


def test_it_continues_with_more_steps(broken: Path) -> None:
    _content(broken)
    more = [f"train.steps={STEPS + 1}", "save.resume=runs/one"]
    assert main(["run", "recipe.yaml", *more, "save.to=runs/more"]) == 0
    assert losses(broken, "runs/more")[-1][0] == STEPS + 1


def test_its_plan_needs_no_sources(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe.yaml"]) == 0
    before = capsys.readouterr().out
    _one_file(broken)
    assert main(["plan", "recipe.yaml"]) == 0
    *after, note = capsys.readouterr().out.splitlines()
    assert (after, NOTE in note) == (before.splitlines(), True)


def _other_tokenizer(folder: Path) -> None:
    file = folder / "base/tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(content))


def _other_template(folder: Path) -> None:
    file = folder / "base/tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["chat_template"] = settings["chat_template"].replace("\n", " ")
    file.write_text(json.dumps(settings))


def _no_tokens(folder: Path) -> None:
    shutil.rmtree(folder / "runs/tokens")


def _older_tokens(folder: Path) -> None:
    (file,) = (folder / "runs/tokens").glob("*/manifest.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "encode_version": 1}))


@pytest.mark.parametrize(
    ("change", "overrides"),
    [
        (_other_tokenizer, []),
        (_other_template, []),
        (_no_tokens, []),
        (_older_tokens, []),
        (lambda _: None, ["data.max_length=60", "save.resume=runs/one"]),
        (lambda _: None, ["data.train=[{path: others}]"]),
        (lambda _: None, ["save.to=runs/new"]),
    ],
)
def test_it_needs_the_sources_for_other_tokens(
    broken: Path,
    change: Callable[[Path], None],
    overrides: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _all(broken)
    change(broken)
    assert main(["run", "recipe.yaml", *overrides]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_source_that_has_changed_is_no_missing_one(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _one_file(broken)
    (broken / "rows/a.jsonl").unlink()
    shutil.copy(broken / "rows/b.jsonl", broken / "held.jsonl")
    assert main(["run", "recipe.yaml"]) == 2
    assert "has checkpoints trained on other data" in capsys.readouterr().err
