"""Every format's rows become the same conversation, and rows that cannot be read have a reason."""

from __future__ import annotations

import json
import random

import pytest

from tailor.encode.formats import formats_of, get_format, recognize
from tailor.encode.records import Chat, Completion, RowError, Text, content_hash
from tailor.spec.data import EXAMPLES

CALL = {"name": "weather", "arguments": {"city": "Paris"}}
TOOL = {"name": "weather", "description": "", "parameters": {"type": "object"}}
CHAT = Chat(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "22"},
        {"role": "assistant", "content": "Warm."},
    ],
    [{"type": "function", "function": TOOL}],
)


def read(name: str, row: object, **columns: str) -> object:
    return get_format(name).record(row, columns)


def test_messages_in_all_their_forms():
    as_text = {"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
    parts = [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]
    rows = [
        {"messages": CHAT.messages, "tools": CHAT.tools},
        {"messages": CHAT.messages, "tools": json.dumps([TOOL])},
        {
            "messages": [
                {"role": "developer", "content": "Be brief.", "name": None},
                {"role": "user", "content": parts},
                {"role": "assistant", "content": None, "tool_calls": [as_text]},
                {"role": "function", "content": "22", "tool_calls": None},
                {"role": "assistant", "content": ["War", "m."], "tool_calls": []},
            ],
            "tools": [TOOL],
        },
    ]
    assert [read("messages", row) for row in rows] == [CHAT] * 3


def test_firefly():
    turns = [{"human": "Hi", "assistant": "Hello"}, {"human": "Bye", "assistant": "See you"}]
    row = {"conversation_id": 1, "category": "x", "conversation": turns}
    chat = read("firefly", row)
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "See you"),
    ]
    assert recognize([row], {}, formats_of((EXAMPLES,))) == ["firefly"]
    with pytest.raises(RowError, match="`human` and `assistant`"):
        read("firefly", {"conversation": [{"human": "Hi"}]})


def test_sharegpt():
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "22"},
        {"from": "gpt", "value": "Warm."},
    ]
    row = {"conversations": turns, "tools": json.dumps([TOOL]), "system": "Be brief."}
    assert read("sharegpt", row) == CHAT
    row = {"conversations": [{"from": "system", "value": "Be brief."}, *turns], "tools": [TOOL]}
    assert read("sharegpt", row) == CHAT


def test_alpaca():
    row = {
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
        "system": "Be brief.",
        "history": [["Hi", "Ho"]],
    }
    assert read("alpaca", row) == Chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
            {"role": "user", "content": "Add.\n1 2"},
            {"role": "assistant", "content": "3"},
        ]
    )
    assert (
        read("alpaca", {"instruction": "Add.", "input": "", "output": "3"}).messages[0]["content"] == "Add."
    )


def test_completion_and_text_and_columns():
    assert read("completion", {"prompt": "a", "response": "b"}) == Completion("a", "b")
    assert read("completion", {"prompt": "a", "completion": "b"}) == Completion("a", "b")
    assert read("completion", {"q": "a", "a": "b"}, prompt="q", response="a") == Completion("a", "b")
    assert read("text", {"body": "x"}, text="body") == Text("x")


@pytest.mark.parametrize(
    ("name", "row", "reason", "detail"),
    [
        ("messages", {"text": "x"}, "missing_key", "missing key `messages`"),
        ("messages", [1], "wrong_type", "a row must be an object, not a list"),
        ("messages", {"messages": "x"}, "wrong_type", "`messages` must be a list, not a text"),
        ("messages", {"messages": []}, "empty", "the conversation is empty"),
        ("messages", {"messages": [{"role": "assistant", "content": "x"}]}, "no_user", "no user turn"),
        ("messages", {"messages": [{"content": "x"}]}, "missing_key", "the key `role`"),
        (
            "messages",
            {"messages": [{"role": "user"}]},
            "missing_key",
            "the user message needs the key `content`",
        ),
        ("messages", {"messages": [{"role": "king", "content": ""}]}, "unknown_role", "unknown role 'king'"),
        (
            "messages",
            {"messages": [{"role": "user", "content": 3}]},
            "wrong_type",
            "must be a text, not a number",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "wrong_type",
            "a part of type 'image_url'; only text is supported",
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "bad_json",
            "`arguments` is not valid JSON",
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}
                ]
            },
            "bad_tool_call",
            "must be an object, not a list",
        ),
        ("messages", {"messages": CHAT.messages, "tools": "[1]"}, "bad_tools", "must be an object"),
        (
            "messages",
            {"messages": [{"role": "user", "content": "", "weight": 2}]},
            "turn_mark",
            "must be 0 or 1",
        ),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "missing_key", "`from` and `value`"),
        ("sharegpt", {"conversations": [{"from": "x", "value": ""}]}, "unknown_role", "unknown role 'x'"),
        ("alpaca", {"instruction": "a"}, "missing_key", "missing key `output`"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, "wrong_type", "`history` must be"),
        ("completion", {"prompt": "a", "response": ""}, "empty_answer", "`response` is empty"),
        ("text", {"text": " "}, "empty", "`text` is empty"),
    ],
)
def test_rows_that_cannot_be_read(name, row, reason, detail):
    with pytest.raises(RowError) as caught:
        read(name, row)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("row", "columns", "found"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, {}, ["messages"]),
        ({"conversations": [{"role": "user", "content": "x"}]}, {}, ["messages"]),
        ({"conversations": [{"from": "human", "value": "x"}]}, {}, ["sharegpt"]),
        ({"instruction": "a", "output": "b", "input": ""}, {}, ["alpaca"]),
        ({"prompt": "a", "completion": "b"}, {}, ["completion"]),
        ({"text": "a", "url": "b"}, {}, ["text"]),
        ({"question": "a", "answer": "b"}, {"prompt": "question", "response": "answer"}, ["completion"]),
        ({"instruction": "a", "output": "b", "text": "c"}, {}, ["alpaca", "text"]),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": []}, {}, []),
        ({"question": "a"}, {}, []),
    ],
)
def test_recognize(row, columns, found):
    assert recognize([{"broken": 1}, 3, row], columns, formats_of((EXAMPLES,))) == found


def test_content_hash_is_of_the_content():
    one = read("messages", {"messages": CHAT.messages, "tools": CHAT.tools})
    reordered = [dict(random.sample(sorted(m.items()), len(m))) for m in CHAT.messages]
    assert content_hash(one) == content_hash(read("messages", {"messages": reordered, "tools": [TOOL]}))
    assert content_hash(one) != content_hash(Chat(CHAT.messages[:-1], CHAT.tools))
    assert content_hash(Text("a")) != content_hash(Text("b"))
