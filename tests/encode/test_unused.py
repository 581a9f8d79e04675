"""What rows have beside what tailor reads is named with counts and an example; what changes the meaning is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.cli.main import main
from tailor.encode.formats import get_format
from tailor.encode.records import RowError
from tailor.encode.unused import BEFORE_QUESTION, NULLS, unused_lines
from tailor.errors import DataError
from tailor.spec.methods.dpo import Dpo
from tests.helpers.marked_rows import Rows, chat

CALL = {"name": "weather", "arguments": {"city": "Bern", "days": None}}
TOOL = {"name": "weather", "description": "", "parameters": {"properties": {"city": {}, "days": None}}}


def names(source: dict[str, Any]) -> dict[str, int]:
    return {name: loss["count"] for name, loss in source["unused"].items()}


def test_columns_and_message_keys_are_counted_with_an_example(tmp_path: Path) -> None:
    rows = [
        chat("a", "b", id=7, empty="", nothing=None),
        chat("a", {"content": "b", "score": 3, "refusal": None}, id=8, tags=["x"]),
        chat({"content": "a", "score": 1}, {"content": "b", "score": 2}, id=9),
    ]
    source = Rows(tmp_path).source(rows)
    assert names(source) == {"id": 3, "messages[].score": 2, "tags": 1}
    assert source["unused"]["messages[].score"]["first"] == [f"{tmp_path}/rows.jsonl:2", "3"]
    (line,) = unused_lines({"sources": [source]})
    assert line.endswith("not used: id (3 rows), messages[].score (2 rows), tags (1 rows)")
    # The control: rows of nothing else have nothing unused.
    assert names(Rows(tmp_path).source([chat("a", "b")])) == {}


def test_keys_that_the_template_reads_are_used(tmp_path: Path) -> None:
    rows = [chat({"content": "a", "name": "Ann"}, "b")]
    assert names(Rows(tmp_path).source(rows)) == {"messages[].name": 1}
    named = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.name }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert names(Rows(tmp_path).source(rows, template=named)) == {}


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        (chat("a", "b", conversations=[{"role": "user", "content": "other"}]), {"conversations": 1}),
        ({"instruction": "a", "output": "b", "category": "c"}, {"category": 1}),
        ({"prompt": "a", "response": "b", "completion": "c"}, {"completion": 1}),
        ({"text": "a", "url": "b"}, {"url": 1}),
        (
            {"conversations": [{"from": "human", "value": "a", "n": 1}, {"from": "gpt", "value": "b"}]},
            {"conversations[].n": 1},
        ),
        (
            {"conversation": [{"human": "a", "assistant": "b", "n": 1}], "x": 1},
            {"conversation[].n": 1, "x": 1},
        ),
    ],
)
def test_every_format(tmp_path: Path, row: dict[str, Any], unused: dict[str, int]) -> None:
    assert names(Rows(tmp_path).source([row], source={"format": fitting(row)})) == unused


def fitting(row: dict[str, Any]) -> str:
    for column, name in (("messages", "messages"), ("instruction", "alpaca"), ("prompt", "completion")):
        if column in row:
            return name
    return {"text": "text", "conversations": "sharegpt", "conversation": "firefly"}[next(iter(row))]


def test_preference_rows(tmp_path: Path) -> None:
    answers = {
        field: [{"role": "assistant", "content": field, "model": "m"}] for field in ("chosen", "rejected")
    }
    source = Rows(tmp_path).source([{"prompt": "a", **answers, "score": 1}], method=Dpo(name="dpo"))
    assert names(source) == {"chosen[].model": 1, "rejected[].model": 1, "score": 1}


def test_numbers_of_rows_go_on_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tailor.encode import sources

    monkeypatch.setattr(sources, "PART_BYTES", 2000)
    rows = [chat("a" * 100, "b", **({"late": 1} if at == 90 else {})) for at in range(100)]
    source = Rows(tmp_path).source(rows)
    assert source["unused"]["late"]["first"][0].endswith(":91")


def test_a_column_per_row_is_bounded(tmp_path: Path) -> None:
    source = Rows(tmp_path).source([chat("a", "b", **{f"column {at}": 1}) for at in range(300)])
    assert len(source["unused"]) == 101
    assert names(source)["(other columns)"] == 200


def test_what_conversion_changes_is_counted(tmp_path: Path) -> None:
    calling = {"content": "", "tool_calls": [{"type": "function", "function": CALL}]}
    rows = [
        {"messages": chat("a", calling)["messages"], "tools": [TOOL]},
        {"messages": [{"role": "assistant", "content": "Hello"}, *chat("a", "b")["messages"]]},
        chat("a", "b"),
    ]
    source = Rows(tmp_path).source(rows, template="chatml", max_length=4096)
    assert source["kept"] == 3
    assert {what: loss["count"] for what, loss in source["changes"].items()} == {BEFORE_QUESTION: 1, NULLS: 2}
    record = get_format("messages").record(rows[0], {})
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert record.tools[0]["function"]["parameters"] == {"properties": {"city": {}}}
    # The control: the nulls of a JSON text are its author's.
    text = {"content": "", "tool_calls": [{"function": {**CALL, "arguments": '{"city": null}'}}]}
    record = get_format("messages").record(chat("a", text), {})
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": None}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", chat("a", "b", images=["x.png"]), "not_text"),
        ("messages", chat("a", "b", audio={"bytes": 1}), "not_text"),
        ("messages", chat({"content": "a", "images": ["x"]}, "b"), "not_text"),
        ("messages", chat("<image>What?", "b"), "not_text"),
        ("messages", chat("What?\n<video>", "b"), "not_text"),
        ("messages", chat({"content": [{"type": "image_url"}]}, "b"), "wrong_type"),
        ("alpaca", {"instruction": "<image>\na", "output": "b"}, "not_text"),
        ("firefly", {"conversation": [{"human": "<image>a", "assistant": "b"}]}, "not_text"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "<image>"}]}, "not_text"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}], "videos": ["v"]}, "not_text"),
        ("completion", {"prompt": "a", "response": "b", "image": "x"}, "not_text"),
        ("completion", {"prompt": "<image>a", "response": "b"}, "not_text"),
        ("completion", {"prompt": "a", "response": "b", "query": "c"}, "unsupported_column"),
        ("completion", {"prompt": "a", "response": "b", "system": "c"}, "unsupported_column"),
        ("completion", {"prompt": "a", "response": "b", "tools": "[{}]"}, "unsupported_column"),
        ("preference_text", {"prompt": "a", "chosen": "b", "rejected": "c", "system": "d"}, "unsupported_column"),
        ("unpaired_text", {"prompt": "a", "completion": "b", "label": 1, "query": "d"}, "unsupported_column"),
        ("messages", {**chat("a", "b"), "messages": [{"role": "system", "content": "x"}], "system": "y"}, "two_systems"),
    ],
)  # fmt: skip
def test_what_changes_the_meaning_is_refused(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        get_format(name).record(row, {})
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("messages", chat("a", "b", images=[], audio=None, videos="")),
        ("messages", chat("An RSS feed has <image><url>x</url></image>", "b")),
        ("messages", chat("a", "It writes <image> here")),
        ("completion", {"prompt": "a", "response": "b", "query": "", "system": None}),
        ("text", {"text": "a <image>", "query": "x"}),
    ],
)
def test_control_what_does_not_change_it_is_read(name: str, row: dict[str, Any]) -> None:
    get_format(name).record(row, {})


def test_system_texts_and_tools_are_used_in_all_formats() -> None:
    system = {"role": "system", "content": "Be brief."}
    answer = {"chosen": "x", "rejected": "y"}
    rows = [
        ("messages", chat("a", "b")),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        ("alpaca", {"instruction": "a", "output": "b"}),
        ("firefly", {"conversation": [{"human": "a", "assistant": "b"}]}),
        ("completion_messages", {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}),
        ("preference_alpaca", {"instruction": "a", **answer}),
        ("preference_sharegpt", {"conversations": [{"from": "human", "value": "a"}], **answer}),
        ("unpaired_alpaca", {"instruction": "a", "output": "b", "kto_tag": True}),
    ]
    for name, row in rows:
        for columns in (
            {"system": "Be brief.", "tools": [TOOL]},
            {"system_prompt": "Be brief.", "functions": [TOOL]},
        ):
            record = get_format(name).record({**row, **columns}, {})
            read = getattr(record, "chosen", getattr(record, "answer", record))
            assert read.messages[0] == system, name
            assert read.tools[0]["function"]["name"] == "weather", name
    own = chat("a", "b", system="Be brief.")
    own["messages"] = [system, *own["messages"]]
    assert [turn["role"] for turn in get_format("messages").record(own, {}).messages] == [
        "system",
        "user",
        "assistant",
    ]


def test_commands_name_what_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    rows = Rows(tmp_path)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    data = rows.data([chat("a", "b", id=7)])
    recipe = {
        "model": {"path": rows.model.path},
        "data": {"train": [{"path": data.train[0].path}], "max_length": 64},
        "method": {"name": "sft"},
        "optim": {"learning_rate": 1e-4},
        "train": {"steps": 1, "batch_size": 1},
        "save": {"to": str(tmp_path / "run")},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    for command in (["data", "report"], ["validate", "--data"]):
        assert main([*command, str(tmp_path / "r.yaml")]) == 0
        out = capsys.readouterr().out
        assert "unused        1 rows have id" in out
        assert "rows.jsonl:1 7" in out
    assert main(["validate", str(tmp_path / "r.yaml")]) == 0
    assert "unused" not in capsys.readouterr().out


def test_a_column_that_is_named_must_exist(tmp_path: Path) -> None:
    """Also that of a field that no row needs: a typo would drop all system prompts in silence."""
    rows = [
        {"instruction": "a", "output": "b", "sys_prompt": "Be brief."},
        {"instruction": "c", "output": "d"},
    ]
    marked = Rows(tmp_path).marked(rows, source={"columns": {"system": "sys_prompt"}})
    assert "Be brief." in str(marked[0])
    Rows(tmp_path).source(rows, source={"columns": {"system": "sys_prompt"}})  # one row lacks it
    typo = {"columns": {"system": "sys_promt"}}
    with pytest.raises(DataError) as caught:
        Rows(tmp_path).source(rows, source=typo)
    assert str(caught.value) == (
        f"data.train[0] {tmp_path}/rows.jsonl: columns.system: no row has the column `sys_promt`; the columns are instruction, "
        "output, sys_prompt; did you mean sys_prompt?"
    )
    # Later rows may have it.
    Rows(tmp_path).source(rows, source={**typo, "limit": 1})
    # A column of a table exists, even without a value.
    table = tmp_path / "rows.csv"
    table.write_text("instruction,output,sys_promt\na,b,\n")
    Rows(tmp_path).source([], source={**typo, "path": str(table)})
