"""The preview shows every token of a row, what of it is supervised, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.preview import preview
from tailor.encode.tokenizer import load_tokenizer
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.model import Model

ANSWER = "It is sunny, naïve 日本 🙂."
TALK = {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": ANSWER}]}


@pytest.fixture
def show(tmp_path: Path, tokenizer_folders):
    def shown(rows: list[Any], kind: str = "bpe", split: Any = "train", count: int = 5, **data: Any):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        settings = Data(
            **{"train": [{"path": str(path), "format": "messages"}], "template": "chatml", **data}
        )
        model = Model(path=str(tokenizer_folders[kind]))
        return list(preview(settings, model, Sft(name="sft"), split=split, rows=count))

    return shown


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "stripping"])
def test_every_token_is_shown(show, kind, tokenizer_folders):
    (row,) = show([TALK], kind)
    (pieces,) = row.examples
    assert row.name.endswith("rows.jsonl:1")
    assert "".join(piece.text for piece in pieces if piece.supervised).strip() == f"{ANSWER}<|im_end|>"
    assert [piece.text for piece in pieces if piece.special] == ["<|im_start|>", "<|im_end|>"] * 2
    tokenizer = load_tokenizer(str(tokenizer_folders[kind]), template="chatml")
    text = tokenizer.render(TALK["messages"])
    assert "".join(piece.text for piece in pieces).replace(" ", "") == text.replace(" ", "")


def test_notes_about_rows(show):
    rows: list[Any] = [TALK, "{", {"messages": []}]
    first, second, third = show(rows)
    assert "tokens, " in first.note
    assert first.note.endswith("supervised")
    assert second.note.startswith("left out (bad_json): not valid JSON")
    assert third.note == "left out (empty): the conversation is empty"
    assert not second.examples
    (row,) = show([TALK], max_length=20)
    assert row.note.endswith("dropped (too_long): " + row.note.split()[0] + " tokens; data.max_length is 20")
    (row,) = show([TALK], max_length=20, on_long="chunk")
    assert "chunks of at most 20 tokens" in row.note
    (row,) = show([TALK], max_length=40, on_long="truncate")
    assert "truncated to 40" in row.note
    assert any(piece.cut for piece in row.examples[0])
    assert not any(piece.cut for piece in row.examples[0][:3])


def test_the_requested_split(show):
    talks = [json.loads(json.dumps(TALK).replace("Weather", f"Weather {n}")) for n in range(60)]
    train = {row.name for row in show(talks, holdout=0.3, count=100)}
    held_out = {row.name for row in show(talks, holdout=0.3, count=100, split="evaluation")}
    assert held_out
    assert not train & held_out
    assert len(train) + len(held_out) == 60
    assert len(show(talks, count=2)) == 2
