"""The exact-match measurement: questions and references from the tokens, the run's files, and several workers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tailor.data.token_store import TokenStore
from tailor.encode.prepare import prepare
from tailor.encode.template import builtin_templates
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError, TemplateError
from tailor.evaluate.in_training import exact_match
from tailor.evaluate.in_training.exact_match import Questions, answer_rows, probe, stops
from tailor.evaluate.question import select
from tailor.evaluate.rows import questions
from tailor.plan import Plan
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.store import Store
from tailor.train import loop
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import byte_tokenizer, tiny_llama
from tests.helpers.plans import make_plan

TURNS = [
    {"role": "system", "content": "You cut cloth."},
    {"role": "user", "content": "What is the waist?"},
    {"role": "assistant", "content": "74"},
    {"role": "user", "content": "And the\nsleeve?"},
    {"role": "assistant", "content": " 61 cm"},
]


def prepared(
    folder: Path, rows: list[dict[str, Any]], *, train_on: Any = "assistant", held_out: int = 4
) -> TokenStore:
    """Rows as training data, the last `held_out` of them as evaluation data."""
    for name, part in (("train", rows), ("evaluation", rows[-held_out:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = Data.model_validate(
        {
            "train": [{"path": str(folder / "train.jsonl")}],
            "evaluation": [{"path": str(folder / "evaluation.jsonl")}],
            "max_length": 256,
        }
    )
    return prepare(
        data, Model(path=str(folder / "model")), Sft(name="sft", train_on=train_on), str(folder / "tokens")
    ).tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model")
    return tmp_path


def plan_of(folder: Path, tokens: TokenStore, run: str = "run", **generation: int) -> Plan:
    return make_plan(
        folder / "model",
        tokens,
        folder / run,
        data={"max_length": 256},
        train={"steps": 60, "batch_size": 2},
        optim={"learning_rate": 3e-3},
        evaluate={"generation": {"max_new_tokens": 8, "batch_size": 2, **generation}},
    )


def chats() -> list[dict[str, Any]]:
    names = ("Ada", "Basil", "Cora", "Dora")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{name}?"},
                {"role": "assistant", "content": name.upper()},
            ]
        }
        for name in names
    ]


def saved(folder: Path, when: str, run: str = "run") -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / run / "evaluation" / f"{when}.jsonl").read_text().splitlines()
    ]


def test_the_last_answer_is_the_reference(folder: Path) -> None:
    tokens = prepared(folder, [{"messages": TURNS}], held_out=1)
    tokenizer = load_tokenizer(str(folder / "model"))
    split = tokens.split("evaluation")
    (row,) = answer_rows(split, select(split, tokenizer), stops(tokenizer, tokens.template))
    assert tokenizer.decode(row.prompt) == tokenizer.render(TURNS[:-1], add_generation_prompt=True)
    assert tokenizer.decode(row.reference) == " 61 cm"
    assert row.row == (0, str(folder / "evaluation.jsonl"), 1)


def test_limit_takes_the_first_rows(folder: Path) -> None:
    tokens, tokenizer = prepared(folder, chats()), load_tokenizer(str(folder / "model"))
    asked = select(tokens.split("evaluation"), tokenizer, questions=3).asked
    assert [row.row for row, _ in asked] == [1, 2, 3]


def test_a_run_reports_what_it_learned_and_writes_every_answer(folder: Path) -> None:
    plan, host = plan_of(folder, prepared(folder, chats())), PlainHost()
    loop.run(plan, host, [probe])
    before, after = host.of("generation")
    counts = {"count": 4, "cut": 0, "without_question": 0}
    assert before == {"kind": "generation", "when": "before", "exact_match": 0.0, **counts}
    assert after == {"kind": "generation", "when": "after", "exact_match": 1.0, **counts}
    started = [record for record in host.records if "phase" in record]
    assert started == [
        {"kind": "status", "message": f"generating 4 answers {when} training", "phase": f"answers_{when}"}
        for when in ("before", "after")
    ]
    assert [
        host.records.index(record) < host.records.index(result)
        for record, result in zip(started, (before, after), strict=True)
    ] == [True, True]
    assert [record["exact"] for record in saved(folder, "before")] == [False] * 4
    assert saved(folder, "after")[1] == {
        "source": 0,
        "file": str(folder / "evaluation.jsonl"),
        "row": 2,
        "prompt": "Basil?",
        "rendered": "<|im_start|>user\nBasil?<|im_end|>\n<|im_start|>assistant\n",
        "reference": "BASIL",
        "answer": "BASIL",
        "exact": True,
    }


def test_probing_does_not_change_training(folder: Path) -> None:
    tokens = prepared(folder, chats())
    probed, plain = PlainHost(), PlainHost()
    loop.run(plan_of(folder, tokens), probed, [probe])
    loop.run(plan_of(folder, tokens, run="other"), plain)
    assert probed.losses() == plain.losses()


def test_a_resumed_run_keeps_what_was_measured_before_its_first_step(folder: Path) -> None:
    plan = plan_of(folder, prepared(folder, chats()))
    loop.run(plan, PlainHost(), [probe])
    first = saved(folder, "before")
    host = PlainHost(resume_from=plan.run_url)
    loop.run(plan, host, [probe])
    assert [record["when"] for record in host.of("generation")] == ["after"]
    assert saved(folder, "before") == first


def test_plain_text_has_no_question(folder: Path) -> None:
    tokens = prepared(folder, [{"text": "Ada wears a coat."}] * 4)
    with pytest.raises(DataError, match="no evaluation row has a question"):
        loop.run(plan_of(folder, tokens), PlainHost(), [probe])


def _probe_on_a_rank(host: PlainHost, plan: Plan) -> list[dict[str, Any]]:
    session = loop.open_session(plan, host)
    probe(session, "end", 0)
    return host.of("generation")


def test_workers_share_the_questions(folder: Path) -> None:
    rows = [*chats(), {"messages": TURNS}]
    tokens = prepared(folder, rows, held_out=5)
    alone, together = plan_of(folder, tokens), plan_of(folder, tokens, run="together")
    _probe_on_a_rank(PlainHost(), alone)
    reports = run_distributed(_probe_on_a_rank, together, world=2)
    assert [len(records) for records in reports] == [1, 0]
    assert reports[0][0]["count"] == 5
    assert saved(folder, "after", "together") == saved(folder, "after")


@pytest.mark.parametrize("name", sorted(builtin_templates()))
def test_the_last_question_is_found_in_every_built_in_template(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)), template=name)
    template = tokenizer.require_template()
    questions = Questions(tokenizer, {"name": template.name, "text": template.text})
    for turns in (TURNS[1:2], TURNS[1:4], TURNS[:4]):
        try:
            prompt = tokenizer.render(turns, add_generation_prompt=True)
        except TemplateError:
            assert turns[0]["role"] == "system", "some templates take no system turn"
            continue
        assert questions.last(prompt) == turns[-1]["content"], prompt


def test_without_a_template_the_whole_prompt_is_the_question(tmp_path: Path) -> None:
    assert Questions(load_tokenizer(str(byte_tokenizer(tmp_path))), None).last("2 + 2 =") == "2 + 2 ="


def test_answers_go_to_any_store(folder: Path) -> None:
    tokens = prepared(folder, chats())
    plan = make_plan(
        folder / "model", tokens, folder / "unused", evaluate={"generation": {}}, data={"max_length": 256}
    )
    plan = dataclasses.replace(plan, run_url="memory://answers/run")
    probe(loop.open_session(plan, PlainHost()), "end", 0)
    assert len(Store("memory://answers/run").read_text("evaluation/after.jsonl").splitlines()) == 4


@pytest.mark.parametrize("bos", [True, False])
def test_a_row_of_a_bos_and_an_answer_has_no_question(folder: Path, bos: bool) -> None:
    """Training and evaluation use one rule. The control: one letter is a question."""
    byte_tokenizer(folder / "model", bos=bos)
    rows = [{"prompt": "", "response": "Tea."}, {"prompt": "?", "response": "Coffee."}]
    tokens, tokenizer = prepared(folder, rows, held_out=2), load_tokenizer(str(folder / "model"))
    split = tokens.split("evaluation")
    starts = [int(split.example(at).spans[-1][0]) for at in range(2)]
    assert starts == ([1, 2] if bos else [0, 1]), "the first row is a BOS and an answer, or an answer alone"
    assert [row.row for row, _ in select(split, tokenizer).asked] == [2]
    found = questions(split, None, tokenizer, tokens.template).found
    assert [question.location["row"] for question in found] == [2]
    assert not select(split, tokenizer, rows=1).asked


def test_answers_are_compared_without_their_reasoning(folder: Path) -> None:
    said = "<think>\nWaists are 74.\n</think>\n\n74"
    row = {"messages": [*TURNS[:2], {"role": "assistant", "content": said}]}
    store, tokenizer = prepared(folder, [row] * 4, held_out=1), load_tokenizer(str(folder / "model"))
    split, template = store.split("evaluation"), store.template
    (question,) = questions(split, None, tokenizer, template).found
    assert question.reference == "74"
    (asked,) = answer_rows(split, select(split, tokenizer), stops(tokenizer, template))
    assert tokenizer.decode(asked.reference) == said, "the tokens are those of the whole turn"
    for answer, exact in (
        ("<think>Hm.</think>74", True),
        ("74", True),
        (said.replace("\n74", "\n75"), False),
    ):
        record = exact_match._record(
            tokenizer, Questions(tokenizer, template), asked, tokenizer.encode(answer)
        )
        assert (record["reference"], record["exact"]) == ("74", exact), answer
    assert record["reasoning_content"] == "Waists are 74."
