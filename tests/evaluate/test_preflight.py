"""Errors of `evaluate.final` are reported before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tailor
from tailor.encode.prepare import prepare
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import TailorError
from tailor.evaluate import preflight
from tailor.evaluate.model_rows import rows_read_by
from tailor.evaluate.question import select
from tailor.spec.data import Data, Source
from tailor.spec.methods.pretrain import Pretrain
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.spec.recipe import Recipe
from tests.helpers.evaluations import make_recipe, write_rows
from tests.helpers.models import tiny_llama

CHOICE = {"question": "1?", "choices": ["It is 0.", "It is 1."], "answer": 1}
PAIRS = [{"query": "q", "pos": ["p"], "neg": ["n"]}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    make_recipe(folder)
    write_rows(folder / "choices.jsonl", [CHOICE])
    write_rows(folder / "facts.jsonl", [{"question": "What?", "facts": ["tea"]}])
    write_rows(folder / "texts.jsonl", [{"text": f"A text of number {at}."} for at in range(40)])
    write_rows(folder / "pairs.jsonl", PAIRS)
    write_rows(folder / "asked.jsonl", [{"prompt": "What?", "response": "Tea."}])
    (folder / "beir/qrels").mkdir(parents=True)
    write_rows(folder / "beir/corpus.jsonl", [{"_id": "1", "text": "tea"}])
    write_rows(folder / "beir/queries.jsonl", [{"_id": "1", "text": "tea?"}])
    write_rows(folder / "beir/qrels/test.jsonl", [{"query-id": "1", "corpus-id": "1", "score": 1}])
    return folder


def check(place: Path, final: dict[str, Any], **sections: Any) -> None:
    values: dict[str, Any] = {
        "model": {"path": str(place / "base")},
        "data": {"train": [{"path": str(place / "rows.jsonl")}], "holdout": 0.3, "max_length": 128},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-2},
        "save": {"to": str(place / "run")},
        "evaluate": {"final": final},
    }
    recipe = Recipe.model_validate({**values, **sections})
    tokens = prepare(recipe.data, recipe.model, recipe.method, str(place / "tokens")).tokens
    assert recipe.evaluate.final is not None
    preflight.check(recipe.evaluate.final, recipe, plain=tokens.template is None)
    preflight.check_split(recipe.evaluate.final, recipe, tokens)


def task(place: Path, name: str, file: str, **columns: str) -> dict[str, Any]:
    data: dict[str, Any] = {"path": str(place / file)}
    more = {"lengths": [8]} if name in ("long_perplexity", "needle") else {}
    return {"tasks": [{"name": name, "data": data | ({"columns": columns} if columns else {}), **more}]}


@pytest.mark.parametrize(
    ("name", "file", "columns", "said"),
    [
        ("multiple_choice", "choices.jsonl", {"answer": "key"}, r"choices\.jsonl:1: missing key `key`"),
        ("facts", "facts.jsonl", {"facts": "points"}, r"facts\.jsonl:1: missing key `points`"),
        ("long_perplexity", "texts.jsonl", {"text": "body"}, r"texts\.jsonl:1: missing key `body`"),
        ("needle", "texts.jsonl", {"text": "body"}, r"texts\.jsonl:1: missing key `body`"),
        ("retrieval", "texts.jsonl", {}, r"final\.tasks\[0\]\.data .*texts\.jsonl: .*"),
    ],
)
def test_the_rows_of_a_task(place: Path, name: str, file: str, columns: dict[str, str], said: str) -> None:
    with pytest.raises(TailorError, match=said):
        check(place, task(place, name, file, **columns))
    right = "pairs.jsonl" if name == "retrieval" else file
    check(place, task(place, name, right))  # the control


@pytest.mark.parametrize("gone", ["corpus", "queries", "qrels/test"])
def test_a_collection_in_beirs_layout(place: Path, gone: str) -> None:
    check(place, task(place, "retrieval", "beir"))
    file = place / "beir" / f"{gone}.jsonl"
    kept = file.read_text()
    write_rows(file, [{"id of": "1"}])
    try:
        with pytest.raises(TailorError, match=r"(corpus|queries|test)\.jsonl:1: "):
            check(place, task(place, "retrieval", "beir"))
    finally:
        file.write_text(kept)


def test_only_the_first_rows_are_read(place: Path) -> None:
    rows = [CHOICE] * preflight.PEEK
    write_rows(place / "many.jsonl", [*rows, {"question": "no choices"}])
    check(place, task(place, "multiple_choice", "many.jsonl"))
    write_rows(place / "many.jsonl", [*rows[1:], {"question": "no choices"}])
    with pytest.raises(TailorError, match=r"many\.jsonl:20: missing key"):
        check(place, task(place, "multiple_choice", "many.jsonl"))


def test_rows_of_the_evaluations_own(place: Path) -> None:
    def own(file: str, **more: Any) -> dict[str, Any]:
        return {"data": {"evaluation": [{"path": str(place / file), **more}]}}

    for wrong, said in (
        (own("none.jsonl"), "evaluation.0. .*none.jsonl: does not exist"),
        (own("choices.jsonl"), "choices.jsonl: format: auto finds no format that fits"),
        (own("asked.jsonl", columns={"response": "answer"}), "no column `answer`"),
        (own("texts.jsonl"), "evaluate.final: no evaluation row has a question"),
    ):
        with pytest.raises(TailorError, match=said):
            check(place, wrong)
    check(place, own("asked.jsonl"))
    check(place, {**own("texts.jsonl"), "tasks": [{"name": "perplexity"}]})


def test_the_runs_own_rows(place: Path) -> None:
    """Plain text, and rows that are supervised as a whole, have no question; a tiny holdout may have no row."""
    check(place, {})
    data = {"train": [{"path": str(place / "texts.jsonl")}], "holdout": 0.3, "max_length": 128}
    with pytest.raises(TailorError, match="no evaluation row has a question"):
        check(place, {}, data=data)
    check(place, {"tasks": [{"name": "perplexity"}]}, data=data)
    with pytest.raises(TailorError, match="no evaluation row has a question"):
        check(place, {}, method={"name": "sft", "train_on": "everything"})
    with pytest.raises(TailorError, match="no evaluation row remains"):
        check(place, {"tasks": [{"name": "perplexity"}]}, data={**data, "holdout": 1e-9})


def test_models_to_compare_with(place: Path) -> None:
    tiny_llama(place / "other", num_hidden_layers=1)
    check(place, {"compare": ["base", "unscaled_base", str(place / "other")]})
    with pytest.raises(TailorError, match="nothere"):
        check(place, {"compare": ["base", str(place / "nothere")]})
    with pytest.raises(TailorError, match=r"embedding\.json"):
        check(place, {**task(place, "retrieval", "pairs.jsonl"), "compare": [str(place / "other")]})


def test_errors_end_a_run_before_its_first_step(tmp_path: Path) -> None:
    write_rows(tmp_path / "choices.jsonl", [CHOICE])
    file = tmp_path / "choices.jsonl"
    final = f"{{name: multiple_choice, data: {{path: {file}, columns: {{answer: key}}}}}}"
    recipe = tailor.load(make_recipe(tmp_path, steps=1, more=f"evaluate: {{final: {{tasks: [{final}]}}}}\n"))
    with pytest.raises(TailorError, match=r"choices\.jsonl:1: missing key `key`"):
        recipe.run()
    assert not (tmp_path / "runs/tiny/plan.json").exists()


def test_a_pretrained_models_own_rows_keep_their_questions(place: Path) -> None:
    """Pretraining supervises every token, but only the answers of evaluation rows."""
    source = Source(path=str(place / "asked.jsonl"))
    data = Data.model_construct(train=[], evaluation=[source], max_length=128)

    def asks(method: Sft) -> bool:
        tokens = prepare(data, Model(path=str(place / "base")), method, str(place / "tokens")).tokens
        tokenizer = load_tokenizer(str(place / "base"))
        return bool(select(tokens.split("evaluation"), tokenizer).asked)

    assert asks(rows_read_by(Pretrain(name="pretrain")))
    assert not asks(Sft(name="sft", train_on="everything")), "the control"


def test_the_column_of_by(place: Path) -> None:
    """One row with the column is enough: it may be missing in others."""
    rows = [{"prompt": "What?", "response": "Tea."}, {"prompt": "What?", "response": "Tea.", "topic": "a"}]
    write_rows(place / "topics.jsonl", rows)
    own = {"data": {"evaluation": [{"path": str(place / "topics.jsonl")}]}}
    check(place, {**own, "by": "topic"})
    with pytest.raises(
        TailorError, match=r"final\.by: no row has a column topik; the rows have prompt, resp"
    ):
        check(place, {**own, "by": "topik"})
    with pytest.raises(TailorError, match=r"final\.by: no row has a column topic; the rows have messages"):
        check(place, {"by": "topic"})
    choices = {"path": str(place / "choices.jsonl"), "by": "level"}
    with pytest.raises(
        TailorError, match=r"tasks\[0\]\.data\.by: no row has a column level; the rows have ans"
    ):
        check(place, {"tasks": [{"name": "multiple_choice", "data": choices}]})
