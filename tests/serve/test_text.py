"""The text of an answer as it grows, and tool calls in it."""

from __future__ import annotations

import json

import pytest

from tailor.encode.prompts import answer_text
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.serve import tool_calls
from tailor.serve.backend import Piece
from tailor.serve.responses import Choice
from tailor.serve.text import TextStream
from tests.helpers.models import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def pieces(tokenizer: Tokenizer, text: str, *stops: str) -> list[str]:
    stream = TextStream(tokenizer, stops)
    found = []
    for token in tokenizer.encode(text):
        found.append(stream.take(token))
        if stream.stopped:
            return found
    return [*found, stream.end()]


@pytest.mark.parametrize("text", ["plain", " spaces  around ", "Grüße, 世界 🌍!", "\n\nlines\n"])
def test_pieces_joined_are_the_answer(tokenizer: Tokenizer, text: str) -> None:
    found = pieces(tokenizer, text)
    assert "".join(found) == answer_text(tokenizer, tokenizer.encode(text))
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in found), "no part of a character"


def test_an_unfinished_character_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a世")[:-1]
    stream = TextStream(tokenizer)
    assert "".join([*(stream.take(token) for token in ids), stream.end()]) == answer_text(tokenizer, ids)


def test_a_stop_text_and_a_part_of_one(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(tokenizer, "one END two", "END")) == "one "
    found = pieces(tokenizer, "one EN two EN", "END")
    assert "".join(found) == "one EN two EN"
    assert "E" not in found, "a possible beginning of a stop text is held back"
    assert "".join(pieces(tokenizer, "abcabd", "abd", "cab")) == "ab", "the first one counts"


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'


def test_tool_calls_are_parsed() -> None:
    text, calls = tool_calls.parse(f"I look. {CALL}\n{CALL}")
    assert text == "I look."
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"at": "é"}] * 2
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    ["no call", "<tool_call>{broken}</tool_call>", '<tool_call>{"name": 3}</tool_call>', "<tool_call>"],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert tool_calls.parse(text) == (text, [])


def test_a_stream_holds_a_call_back() -> None:
    choice, sent = Choice(0, parses_tools=True), []
    for at, letter in enumerate(answer := f"So <b> {CALL}"):
        sent.append(choice.take(Piece(letter, "stop" if at == len(answer) - 1 else None)))
    assert "".join(sent).strip() == "So <b>"
    assert choice.finish_reason == "tool_calls"
    assert len(choice.calls) == 1
