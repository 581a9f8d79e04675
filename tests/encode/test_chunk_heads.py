"""Every chunk starts as the model expects: BOS, and the system turn of a conversation; nothing of them is learned again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.data.split import Missing
from tailor.encode import truncation
from tailor.encode.examples import Encoder, Outcome
from tailor.encode.masks import EncodedExample
from tailor.encode.records import Chat, Completion, Pair, RowError, Text
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.errors import DataError
from tailor.spec.data import Chunk
from tailor.spec.methods.base import AnswerLimits
from tests.helpers.models import CHATML, byte_tokenizer

BOS, EOS = 1, 2
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
)
MERGED = (  # as in Gemma: the system message starts the user's turn
    "{{ bos_token }}{% set ns = namespace(first='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.first = message['content'] + '\n\n' %}{% else %}"
    "<|im_start|>{{ message['role'] }}\n{{ ns.first }}{{ message['content'] }}<|im_end|>\n"
    "{% set ns.first = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encoder(
    folder: Path, *, bos: bool = True, template: str = CHATML, length: int = 60, **settings: Any
) -> Encoder:
    tokenizer = load_tokenizer(str(byte_tokenizer(folder, bos=bos, chat_template=template)))
    chosen = {"train_on": "assistant", "on_long": "chunk", "chunk": Chunk(overlap=5, min_length=20)}
    return Encoder(tokenizer, turn_rules(tokenizer), max_length=length, **{**chosen, **settings})


def chunked(made: Encoder, record: Any) -> list[EncodedExample]:
    (outcome,) = made([record])
    assert isinstance(outcome, Outcome)
    return outcome.examples


def scored(pieces: list[EncodedExample]) -> list[int]:
    return [
        int(piece.input_ids[at])
        for piece in pieces
        for start, stop in piece.spans
        for at in range(max(start, 1), stop)
    ]


def by_hand(ids: list[int], head: int, length: int, overlap: int, shortest: int) -> list[list[int]]:
    """The chunks of a text: its first `length` tokens, then the head, the overlap, and as many new tokens as fit."""
    rows, done = [ids[:length]], length
    while done < len(ids):
        new = min(length - head - overlap, len(ids) - done)
        context = max(overlap, shortest - head - new)
        rows.append(ids[:head] + ids[done - context : done + new])
        done += new
    return rows


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("tokens", [61, 115, 118, 300])
def test_chunks_of_a_text_start_with_bos(tmp_path: Path, bos: bool, tokens: int) -> None:
    text = "".join(chr(97 + at % 26) for at in range(tokens))
    made = encoder(tmp_path, bos=bos)
    pieces = chunked(made, Text(text))
    ids = [BOS] * bos + made.tokenizer.encode(text) + [EOS]
    assert [piece.input_ids.tolist() for piece in pieces] == by_hand(ids, int(bos), 60, 5, 20)
    assert scored(pieces) == ids[1:], "each token is learned once, and a repeated BOS never"
    assert all(20 <= len(piece.input_ids) <= 60 for piece in pieces)
    flags = [piece.missing for piece in pieces]
    assert flags[0] == Missing.END
    assert set(flags[1:-1]) <= {Missing.START | Missing.END}
    assert flags[-1] == Missing.START
    if bos:
        before = by_hand(ids, 0, 60, 5, 20)
        assert before[1][0] != BOS, "control: without the head, later chunks start inside the text"


def test_a_prefix_of_several_tokens_is_not_learned_again() -> None:
    ids = np.arange(200, dtype=np.int32)
    pieces = truncation.chunks(EncodedExample(ids, [(0, 200)], head=3), 50, Chunk(overlap=1, min_length=50))
    assert all(piece.input_ids[:3].tolist() == [0, 1, 2] for piece in pieces)
    assert {len(piece.input_ids) for piece in pieces} == {50}
    assert scored(pieces) == list(range(1, 200))


CONVERSATION = [
    {"role": "user", "content": "one two three four five six seven eight nine"},
    {"role": "assistant", "content": "ten eleven twelve thirteen fourteen fifteen"},
] * 2
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("template", "system", "head"),
    [
        (CHATML, True, "<|im_start|>system\nBe brief.<|im_end|>\n"),
        (CHATML, False, ""),
        ("{{ bos_token }}" + CHATML, True, "<s><|im_start|>system\nBe brief.<|im_end|>\n"),
        ("{{ bos_token }}" + CHATML, False, "<s>"),
        (DEFAULT_SYSTEM, False, "<|im_start|>system\nBe kind.<|im_end|>\n"),
        (MERGED, True, "<s><|im_start|>user\nBe brief.\n\n"),
        (MERGED, False, "<s>"),
    ],
)
@pytest.mark.parametrize("train_on", ["assistant", "everything"])
def test_chunks_of_a_conversation_start_with_its_system_turn(
    tmp_path: Path, template: str, system: bool, head: str, train_on: str
) -> None:
    made = encoder(tmp_path, template=template, length=100, train_on=train_on)
    record = Chat([SYSTEM, *CONVERSATION] if system else CONVERSATION)
    ((whole,),) = made.encode([record])
    pieces = chunked(made, record)
    first = made.tokenizer.encode(head)
    assert len(pieces) > 2
    assert all(piece.input_ids[: len(first)].tolist() == first for piece in pieces)
    rows = by_hand(whole.input_ids.tolist(), len(first), 100, 5, 20)
    kept = [piece.input_ids.tolist() for piece in pieces]
    assert kept == rows if train_on == "everything" else all(row in rows for row in kept)
    assert scored(pieces) == scored([whole])


def test_a_system_turn_that_fills_a_chunk_costs_only_its_row(tmp_path: Path) -> None:
    made = encoder(tmp_path, length=60)
    long = {"role": "system", "content": "x" * 100}
    outcomes = made([Chat([long, *CONVERSATION]), Chat([SYSTEM, *CONVERSATION])])
    assert isinstance(outcomes[0], RowError)
    assert outcomes[0].reason == "too_long"
    assert "every chunk starts with the system turn of" in outcomes[0].detail
    assert isinstance(outcomes[1], Outcome)


def test_an_overlap_that_leaves_no_new_token_is_rejected(tmp_path: Path) -> None:
    encoder(tmp_path / "a", bos=False, length=32, chunk=Chunk(overlap=31))
    encoder(tmp_path / "b", length=32, chunk=Chunk(overlap=30))
    with pytest.raises(DataError, match=r"data\.chunk\.overlap: a chunk starts with 1 tokens"):
        encoder(tmp_path / "c", length=32, chunk=Chunk(overlap=31))
    encoder(tmp_path / "d", length=32, chunk=Chunk(overlap=31), on_long="drop")


@pytest.mark.parametrize("bos", [False, True])
def test_a_truncated_prompt_of_a_pair_keeps_bos(tmp_path: Path, bos: bool) -> None:
    made = encoder(tmp_path, bos=bos, on_long="truncate", limits=AnswerLimits(None, None))
    prompt, answers = "p" * 50 + "q" * 50, ("yes" * 5, "no" * 5)
    pieces = chunked(made, Pair(*(Completion(prompt, answer) for answer in answers)))
    for piece, answer in zip(pieces, answers, strict=True):
        text = made.tokenizer.decode(piece.input_ids)
        assert text.startswith("<s>") == bos
        assert text.endswith(f"q{answer}</s>")
        assert piece.missing == Missing.START
        assert scored([piece]) == [*made.tokenizer.encode(answer), EOS]
    assert max(len(piece.input_ids) for piece in pieces) == 60
