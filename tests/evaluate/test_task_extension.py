"""The example of the docs, an evaluation task of another package, evaluates a trained run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.commands import completed
from tests.helpers.evaluations import make_recipe, write_rows
from tests.helpers.extensions import documented

ROOT = Path(__file__).parents[2]
EVALUATION = """\
tasks:
  - {name: perplexity}
  - {name: matches, data: {path: questions.jsonl}}
decoding: {max_new_tokens: 8}
compare: none
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, an evaluation file with its rows, and the other package."""
    import tailor

    folder = tmp_path_factory.mktemp("place")
    tailor.load(make_recipe(folder, steps=1)).run()
    rows = [{"question": "1?", "pattern": "(?s).*"}, {"question": "2?", "pattern": "no such answer"}]
    write_rows(folder / "questions.jsonl", rows)
    (folder / "matches.yaml").write_text(EVALUATION)
    documented(folder / "packages", "An evaluation task")
    return folder


def tailor_command(place: Path, *arguments: str, installed: bool) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*([str(place / "packages")] if installed else []), str(ROOT)])
    return completed(arguments, cwd=place, env={**os.environ, "PYTHONPATH": path})


def test_its_figure_is_in_the_results(place: Path) -> None:
    done = tailor_command(place, "evaluate", "runs/tiny", "--with", "matches.yaml", installed=True)
    assert done.returncode == 0, done.stderr
    folder = place / "runs/tiny/evaluation/matches"
    results = json.loads((folder / "results.json").read_text())
    figures = {entry["figure"]: entry["models"]["tiny"]["value"] for entry in results["figures"]}
    assert list(figures) == ["loss", "perplexity", "token_accuracy", "matches"]
    assert figures["matches"] == 0.5, "one pattern matches everything, the other nothing"
    rows = [json.loads(line) for line in (folder / "matches.jsonl").read_text().splitlines()]
    assert [row["models"]["tiny"]["matches"] for row in rows] == [1.0, 0.0]
    assert re.search(r"^matches % +50\.0", done.stdout, re.MULTILINE)
    assert re.search(r"^2\? .* no such answer", done.stdout, re.MULTILINE), "the answers are shown"


def test_its_keys_are_checked_like_those_of_any_task(place: Path) -> None:
    wrong = {"columns: {patern: p}": "matches has no field patern; its fields are question, pattern"}
    for keys, message in wrong.items():
        text = EVALUATION.replace("path: questions.jsonl", f"path: questions.jsonl, {keys}")
        (place / "wrong.yaml").write_text(text)
        done = tailor_command(place, "evaluate", "runs/tiny", "--with", "wrong.yaml", installed=True)
        assert done.returncode == 2
        assert message in done.stderr
    assert '"const": "matches"' in tailor_command(place, "schema", "--evaluation", installed=True).stdout


def test_without_the_package_the_name_is_rejected(place: Path) -> None:
    done = tailor_command(place, "evaluate", "runs/tiny", "--with", "matches.yaml", installed=False)
    assert done.returncode == 2
    assert "matches.yaml:3:" in done.stderr
    assert '"const": "matches"' not in tailor_command(place, "schema", "--evaluation", installed=False).stdout
