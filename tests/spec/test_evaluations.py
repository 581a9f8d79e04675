"""Evaluation files: their exact error messages, JSON schema and reference.

`pytest tests/spec --update-fixtures` updates the messages.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jsonschema
import pytest

from tailor.cli.main import main
from tailor.errors import RecipeError
from tailor.spec.evaluation import REFERENCE, Evaluation
from tailor.spec.load import load_evaluation, load_recipe, resolved_yaml
from tailor.spec.reading import schema_tree
from tailor.spec.reading.json_schema import schema, schema_text
from tailor.spec.reading.reference import reference
from tailor.spec.reading.source import parse
from tailor.spec.recipe import Recipe
from tailor.spec.suite import Suite
from tailor.spec.tasks.registry import EVALUATION_TASKS, task_class
from tests.spec.helpers import GOOD, problems, write

ROOT = Path(__file__).parents[2]
FILES = sorted((Path(__file__).parent / "evaluations").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluations")
    for file in FILES:
        shutil.copy(file, root)
    (root / "rows").mkdir()
    (root / "rows" / "train.jsonl").write_text("{}\n")
    (root / "base-model").mkdir()
    return root


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_text(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(folder)
    try:
        load_evaluation(file.name)
        text = "ok\n"
    except RecipeError as error:
        text = f"{error}\n".replace(str(folder), "CWD")
    expected = file.with_suffix(".expected.txt")
    if request.config.getoption("--update-fixtures"):
        expected.write_text(text)
    assert text == expected.read_text()


def test_committed_schema_and_reference_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / "recipes" / "evaluation.schema.json").read_text() == schema_text(Evaluation), (
        "run `make docs`"
    )
    committed = (ROOT / "docs" / "evaluation-reference.md").read_text()
    assert committed == reference(Evaluation, REFERENCE), "run `make docs`"
    assert main(["schema", "--evaluation"]) == 0
    assert capsys.readouterr().out == schema_text(Evaluation)
    assert main(["schema", "--evaluation", "--reference"]) == 0
    assert capsys.readouterr().out == committed


def test_schema_agrees_with_the_spec() -> None:
    validator = jsonschema.Draft202012Validator(schema(Evaluation))
    validator.check_schema(schema(Evaluation))

    def errors(file: str) -> list[str]:
        text = (Path(__file__).parent / "evaluations" / file).read_text()
        return [error.message for error in validator.iter_errors(parse(text, "e").values)]

    assert errors("good.yaml") == errors("extends.yaml") == []
    assert len(errors("mistakes.yaml")) > 5


def test_every_task_declares_its_metrics_and_rows() -> None:
    tasks = {
        str(name)
        for section in schema_tree.of_field(Suite.model_fields["tasks"]).item(0).sections
        for name in schema_tree.names(section)
    }  # type: ignore[union-attr]
    assert tasks == set(EVALUATION_TASKS.names())
    for name in tasks:
        given = task_class(name).metrics({"name": name, "lengths": [64, 32]})
        assert bool(given) != (name in ("lm_eval", "metric", "mteb")), "these are known only after it has run"
        if "lengths" in task_class(name).model_fields:
            own = "perplexity" if name == "long_perplexity" else name
            assert given[-2:] == (f"{own}_32", f"{own}_64")
    assert {name for name in tasks if task_class(name).on_rows} == {
        "perplexity",
        "exact_match",
        "f1",
        "rouge",
        "bleu",
        "chrf",
        "extracted_answer",
        "metric",
        "judge",
    }
    generating = {name for name in tasks if task_class(name).generates}
    assert generating == {
        "exact_match", "f1", "rouge", "bleu", "chrf", "facts", "extracted_answer", "metric", "judge",
        "instructions",
    }  # fmt: skip


def test_aliases_point_to_existing_keys() -> None:
    known = {".".join(path) for paths in schema_tree.key_index(Evaluation).values() for path in paths}
    assert set(Evaluation.aliases.values()) <= known
    assert (
        not (Evaluation.aliases.keys() | Evaluation.migration_hints.keys())
        & schema_tree.key_index(Evaluation).keys()
    )


FINAL = "evaluate: {final: {tasks: [{name: rouge}, {name: perplexity}], fail_if: {rougeL: '< 0.2'}}}\n"


def test_a_recipe_has_the_same_keys_and_rules(tmp_path: Path) -> None:
    held_out = GOOD.replace("[{path: hf://org/rows}]", "[{path: hf://org/rows}]\n  holdout: 0.1")
    recipe = write(tmp_path, held_out + FINAL)
    assert problems(recipe) == []
    again = write(tmp_path, resolved_yaml(load_recipe(recipe)), "again.yaml")
    assert load_recipe(again) == load_recipe(recipe)
    assert Recipe.model_validate(load_recipe(recipe).model_dump()).evaluate.final is not None
    assert problems(recipe, "evaluate.final.fail_if.f1=< 1") == [
        "command line: evaluate.final.fail_if.f1: none of the tasks reports it; add {name: f1} to tasks"
    ]
    assert problems(recipe, "evaluate.final.decoding.sed=1") == [
        "command line: evaluate.final.decoding.sed: unknown key; did you mean seed?"
    ]
    (needs,) = problems(write(tmp_path, GOOD + FINAL))
    assert needs.endswith("rouge needs rows: set evaluate.final.data, data.holdout or data.evaluation")
