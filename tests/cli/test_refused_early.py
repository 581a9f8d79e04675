"""What is known from the model's files, the first rows or the machine is reported before Ray starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tests.helpers.families import FAMILIES
from tests.helpers.models import tiny_llama

CONTRASTIVE = ("method={name: gritlm, mode: embedding, embedding_batch_size: 2}", "train.batch_size=null")


class Started(BaseException):
    pass


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    tiny_llama(folder / "base")
    FAMILIES["bloom"].make(folder / "bloom")
    tiny_llama(folder / "plain")
    settings = folder / "plain/tokenizer_config.json"
    values = json.loads(settings.read_text())
    assert values.pop("chat_template", None) or (folder / "plain/chat_template.jinja").exists()
    settings.write_text(json.dumps(values))
    (folder / "plain/chat_template.jinja").unlink(missing_ok=True)
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    _jsonl(
        folder / "chats.jsonl",
        [{"messages": [turns[0] | {"content": f"Is it {n}?"}, turns[1]]} for n in range(12)],
    )
    _jsonl(folder / "texts.jsonl", [{"text": f"Text {n}."} for n in range(12)])
    _jsonl(folder / "choices.jsonl", [{"question": "1?", "choices": ["0", "1"], "right": 1}])
    _jsonl(folder / "pairs.jsonl", [{"query": f"q{n}", "pos": [f"p{n}"], "neg": ["n"]} for n in range(12)])
    _jsonl(folder / "beir/corpus.jsonl", [{"_id": str(n), "text": f"tea {n}"} for n in range(90)])
    _jsonl(folder / "beir/queries.jsonl", [{"_id": "1", "text": "tea?"}])
    judged = [{"query-id": "1", "corpus-id": str(n), "score": 1} for n in range(40)]
    _jsonl(folder / "beir/qrels/test.jsonl", [*judged, {"query-id": "1", "corpus-id": "none", "score": 1}])
    (folder / "recipe.yaml").write_text(
        "model: {path: base}\n"
        "data: {train: [{path: chats.jsonl}], max_length: 64}\n"
        "method: {name: sft}\n"
        "optim: {learning_rate: 1e-3}\n"
        "train: {steps: 2, batch_size: 2}\n"
        "scale: {workers: 2}\n"
        "save: {to: runs/one}\n"
    )
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`tailor run` with two workers, where a start of Ray is an error."""

    def start(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr("tailor.onray.cluster.BackgroundStart", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(place)
    return lambda *overrides: main(["run", "recipe.yaml", *overrides])


FINAL = "evaluate.final={tasks: [%s]}"
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown target modules": (("model.adapter={target_modules: [q_prj]}",), "target_modules names q_prj"),
    "packed documents": (("model.path=bloom",), "cannot isolate packed documents: its position biases"),
    "no chat template": (("model.path=plain",), "the tokenizer of plain has no chat template"),
    "columns of no format": (
        ("data.train=[{path: choices.jsonl}]",),
        "the rows have the keys question, choices, right",
    ),
    "a wrong column": (
        ("data.train=[{path: texts.jsonl, format: completion, columns: {prompt: asked}}]",),
        "the rows have no column `asked` for the field prompt",
    ),
    "no evaluation row": (
        ("data.holdout=1e-9", "evaluate.every=1"),
        "data.holdout: 1e-09 selects no evaluation row from 12 rows",
    ),
    "no evaluation row for the final evaluation": (
        ("data.holdout=1e-9", FINAL % "{name: perplexity}"),
        "data.holdout: 1e-09 selects no evaluation row from 12 rows",
    ),
    "no training row": (
        ("data.holdout=0.999999",),
        "data.holdout: 0.999999 selects all 12 rows for evaluation",
    ),
    "a missing evaluation file": (
        (FINAL % "{name: multiple_choice, data: {path: none.jsonl}}",),
        "none.jsonl",
    ),
    "an evaluation file without the columns": (
        (FINAL % "{name: multiple_choice, data: {path: choices.jsonl}}",),
        "choices.jsonl:1",
    ),
    "no question in the evaluation file": (
        ("evaluate.final={data: {evaluation: [{path: texts.jsonl}]}, tasks: [{name: exact_match}]}",),
        "evaluate.final",
    ),
    "no question during training": (
        ("evaluate.generation={}", "data.holdout=0.5", "data.train=[{path: texts.jsonl, format: text}]"),
        "evaluate.generation: no evaluation row has a question",
    ),
    "wrong qrels of the final evaluation": (
        (*CONTRASTIVE, "data.train=[{path: pairs.jsonl}]", FINAL % "{name: retrieval, data: {path: beir}}"),
        "no passage 'none' in the corpus of beir",
    ),
    "wrong qrels during training": (
        (*CONTRASTIVE, "data.train=[{path: pairs.jsonl}]", "evaluate.retrieval={data: {path: beir}}"),
        "no passage 'none' in the corpus of beir",
    ),
    "rows longer than the model": (
        ("method={name: pretrain}", "data.train=[{path: texts.jsonl}]", "data.max_length=100000"),
        "makes rows of 100000 tokens, but base supports",
    ),
    "an attention of GPUs": (("model.attention=flash_attention_2",), "there is no GPU"),
    "a type of GPU": (("scale.accelerator=H100",), "scale.accelerator: H100 needs a cluster"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_before_ray_starts(name: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    overrides, message = REFUSED[name]
    assert run(*overrides) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.holdout=0.5", "evaluate.every=1"),
        ("data.holdout=1e-9",),  # a note: the recipe needs no evaluation row
        (
            "model.path=plain",
            "data.train=[{path: texts.jsonl}]",
            "method={name: pretrain}",
            "data.max_length=32",
        ),
        ("model.path=plain", "data.template=chatml"),
    ],
)
def test_the_control_ray_starts(overrides: tuple[str, ...], run: Callable[..., int]) -> None:
    with pytest.raises(Started):
        run(*overrides)
