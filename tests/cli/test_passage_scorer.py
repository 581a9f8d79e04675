"""Every command that prepares rows takes the embedder that the recipe names: from its first look at the data to an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tailor.cli.main import main
from tests.helpers.models import tiny_llama
from tests.helpers.synonyms import ASKED, DEEP, FILL, trained_embedder

RECIPE = """\
model: {{path: {here}/model}}
data:
  train: [{{path: {here}/rows.jsonl}}]
  max_length: 512
  on_long: retrieve
  retrieve: {{passage: 72, question: {question}, embedder: {here}/embedder}}
method: {{name: sft}}
optim: {{learning_rate: 1e-4}}
train: {{steps: 1, batch_size: 1}}
scale: {{gpu: false}}
save: {{to: {here}/run}}
"""
EVALUATION = """\
data:
  evaluation: [{{path: {here}/rows.jsonl}}]
  on_long: retrieve
  retrieve: {{passage: 72, question: {question}{embedder}}}
tasks: [{{name: perplexity}}]
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    trained_embedder(tmp_path / "embedder")
    rows = [
        {"prompt": f"{FILL * (6 + at)}{DEEP * 2}{FILL * 6}{ASKED}", "response": " yes"} for at in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_from_the_first_look_to_an_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"here": here, "question": len(ASKED)}
    (here / "recipe.yaml").write_text(RECIPE.format(**values))
    recipe = str(here / "recipe.yaml")
    assert main(["data", "preview", recipe, "--rows", "1"]) == 0
    assert "tokens of the least relevant passages left out" in capsys.readouterr().out
    assert main(["data", "report", recipe]) == 0
    assert "retrieved     passages of 4 rows" in capsys.readouterr().out
    assert main(["plan", recipe]) == 0
    assert main(["run", recipe]) == 0
    assert len(list((here / "tokens").iterdir())) == 1, "all of them found the same tokens"

    kept = {}
    for name, embedder in (("dense", f", embedder: {here}/embedder"), ("words", "")):
        (here / f"{name}.yaml").write_text(EVALUATION.format(**values, embedder=embedder))
        assert main(["evaluate", str(here / "run"), "--with", str(here / f"{name}.yaml")]) == 0
        kept[name] = json.loads((here / "run" / "evaluation" / name / "results.json").read_text())["figures"]
    assert kept["dense"] != kept["words"], "the control: BM25 leaves other passages"
    capsys.readouterr()

    assert main(["data", "report", recipe, f"data.retrieve.embedder={here}/model"]) == 2
    assert capsys.readouterr().err == (
        f"command line: data.retrieve.embedder: {here}/model makes no embeddings; write a run of gritlm, its adapter "
        "or model folder, or a sentence-transformers model\n"
    )
