"""Errors of preparation and their messages."""

from __future__ import annotations

from typing import Any

import pytest

from tailor.encode import sources
from tailor.encode.prepare import prepare
from tailor.encode.report import check_budget
from tailor.errors import DataError, ModelError, TailorError, TemplateError
from tailor.spec.data import Budget, Data
from tailor.spec.methods.pretrain import Pretrain
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model
from tailor.store import Store
from tests.helpers.models import byte_tokenizer
from tests.helpers.preparation import contents, talk, write


def test_broken_rows_are_counted_named_and_rejected(bench, monkeypatch):
    rows: list[Any] = [talk(n) for n in range(100)]
    rows[2] = '{"messages": [{"role": "user"'
    rows[50] = {"talk": []}
    rows[51] = {"messages": []}
    rows[70] = {"messages": "hello"}
    rows[80] = {"messages": [{"role": "assistant", "content": "x"}]}
    rows[90] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[95] = {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]}
    path = write(bench.folder / "broken.jsonl", rows)
    for size in (sources.PART_BYTES, 700):
        monkeypatch.setattr(sources, "PART_BYTES", size)
        with pytest.raises(DataError) as caught:
            bench(train=[{"path": path}], store=f"{bench.store}{size}")
        message = caught.value.message
        assert message.startswith(
            f"data.train[0] {path}: 6 of 100 rows cannot be read, but data.budget.unreadable allows none\n"
        )
        for name in (
            "3 not valid JSON",
            "51 missing key `messages`",
            "52 the conversation is empty",
            "71 `messages` must be a list",
        ):
            assert f"{path}:{name}" in message
        assert f"{path}:81 the conversation has no user turn" in message
        assert f"{path}:96 the text contains a character that is not valid Unicode" in message
        assert caught.value.hint == "fix these rows, or set data.budget.unreadable: 0.06 to allow it"
        # With that budget the rest is trained on, from the tokens that are there already.
        prepared = bench(train=[{"path": path}], store=f"{bench.store}{size}", budget={"unreadable": 0.06})
        assert prepared.reused
        (report,) = prepared.tokens.manifest["report"]["sources"]
        assert report["kept"] == 93
        assert report["unreadable"]["bad_json"]["count"] == 1
        assert report["dropped"]["nothing_supervised"] == {
            "count": 1,
            "first": [[f"{path}:91", "the row has no supervised token"]],
        }
        assert [row for _, row, _, _ in contents(prepared.tokens)][:4] == [1, 2, 4, 5]


def test_budgets_are_checked_per_source_and_on_reuse(bench):
    bench(max_length=47, budget={"dropped": 1.0})
    with pytest.raises(
        DataError, match=r"of 200 rows would be dropped, but data.budget.dropped allows 5 %"
    ) as caught:
        bench(max_length=47)
    assert caught.value.hint is not None
    assert "data.max_length or set data.on_long, or set data.budget.dropped: 0." in caught.value.hint
    with pytest.raises(DataError, match="rows would be truncated"):
        bench(max_length=47, on_long="truncate", budget={"truncated": 0.0})


def test_a_source_without_usable_rows_is_rejected_and_not_stored(bench):
    path = write(bench.folder / "none.jsonl", [{"messages": [{"role": "user", "content": "x"}]}] * 3)
    with pytest.raises(DataError, match="none of its 3 rows can be used\n  3 nothing_supervised"):
        bench(train=[{"path": path}], budget={"unreadable": 1.0, "dropped": 1.0})
    assert Store(bench.store).names() == []


def test_pretraining_takes_plain_texts_only(bench, tmp_path):
    join = Pretrain(name="pretrain")
    with pytest.raises(
        DataError, match=r"the rows have the format messages, which method pretrain does not read"
    ):
        bench(method=join)
    rows = [{"text": f"A text {n}.", "prompt": "p", "response": "r"} for n in range(9)]
    both = [{"path": write(tmp_path / "both.jsonl", rows)}]
    assert (
        bench(train=both, template=None, method=join).tokens.manifest["report"]["sources"][0]["format"]
        == "text"
    )
    with pytest.raises(DataError, match="the rows fit completion and text"):
        bench(train=both, template=None)


def test_a_failing_task_leaves_nothing(bench):
    def failing(work, tasks):
        yield work(tasks[0])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare(
            Data(train=[{"path": bench.rows}], template="chatml"),
            Model(path=str(bench.model)),
            Sft(name="sft"),
            bench.store,
            runner=failing,
        )
    assert Store(bench.store).names() == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"template": "chatmll"},
            TemplateError,
            "chatmll is neither a built-in template nor a file; did you mean chatml?",
        ),
        (
            {"template": "gemma"},
            TemplateError,
            "use a template whose end-of-turn token this tokenizer has: data.template: alpaca, ",
        ),
    ],
)
def test_wrong_templates_are_reported(bench, change, error, message):
    with pytest.raises(error) as caught:
        bench(**change)
    assert message in str(caught.value)


def test_a_model_without_tokenizer_or_template(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    byte_tokenizer(bench.model, chat_template=None)
    with pytest.raises(TemplateError, match=r"has no chat template; set data.template"):
        bench(template=None)
    bench.model = tmp_path / "nowhere"
    with pytest.raises(
        ModelError, match=f"model.path: {tmp_path}/nowhere is neither a local folder nor a valid Hub id"
    ):
        bench()
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(ModelError, match=r"has no tokenizer.json"):
        bench()


def test_errors_survive_pickling(bench):
    import pickle

    with pytest.raises(TailorError) as caught:
        bench(max_length=30)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert type(again) is DataError


@pytest.mark.parametrize("rows", [100, 1000])
def test_a_budget_allows_exactly_its_share(rows: int) -> None:
    """Every share with the row count as its denominator, and the share that a hint advises. The control: one row more is refused."""

    def report(lost: int) -> dict[str, Any]:
        source = {
            "split": "train",
            "index": 0,
            "path": "rows.jsonl",
            "rows": rows,
            "kept": 1,
            "truncated": lost,
        }
        return {"sources": [{**source, "unreadable": {}, "dropped": {}}]}

    for lost in range(1, rows):
        budget = Budget(truncated=lost / rows)
        check_budget(report(lost), budget)
        with pytest.raises(DataError):
            check_budget(report(lost + 1), budget)


@pytest.mark.parametrize("texts", [0, 1, 2])
def test_retrieve_needs_a_source_with_questions(bench, texts):
    paths = [
        write(bench.folder / f"{number}.jsonl", [{"text": "plain"} if number < texts else talk(number)])
        for number in range(2)
    ]
    sources = [{"path": path} for path in paths]
    if texts == 2:
        with pytest.raises(DataError, match="all sources are plain text, which has no question") as caught:
            bench(train=sources, on_long="retrieve")
        assert caught.value.hint == "set data.on_long: chunk"
    else:
        assert len(contents(bench(train=sources, on_long="retrieve").tokens)) == 2
