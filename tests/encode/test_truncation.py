"""Long rows: chunks from which the row can be rebuilt and that learn every token once, and passages by BM25."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.encode import bm25, truncation
from tailor.encode.examples import Encoder
from tailor.encode.masks import EncodedExample, Span
from tailor.encode.records import Chat, Completion, RowError, Text
from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.turns import turn_rules
from tailor.spec.data import Chunk, Retrieve
from tests.helpers.models import byte_tokenizer

SIZES = [(64, 1, 2), (64, 16, 2), (64, 63, 64), (50, 7, 40)]


def example(length: int, spans: list[Span]) -> EncodedExample:
    return EncodedExample(np.arange(1000, 1000 + length, dtype=np.int32), spans)


def learned(pieces: list[EncodedExample]) -> list[int]:
    """Every token that is predicted. Token ids are their positions."""
    return [
        int(piece.input_ids[at]) - 1000
        for piece in pieces
        for start, stop in piece.spans
        for at in range(max(start, 1), stop)
    ]


def rebuilt(pieces: list[EncodedExample], overlap: int) -> list[int]:
    """The row, by leaving out of each piece what the pieces before it hold."""
    ids: list[int] = []
    for piece in pieces:
        own = piece.input_ids.tolist()
        begin = own[0] - 1000
        assert len(ids) - begin >= overlap or not ids
        ids += own[len(ids) - begin :]
    return ids


@pytest.mark.parametrize(("most", "overlap", "shortest"), SIZES)
@pytest.mark.parametrize("length", [65, 127, 128, 129, 500])
def test_chunks_hold_the_row_and_learn_each_token_once(
    most: int, overlap: int, shortest: int, length: int
) -> None:
    spans = [(0, 3), (20, 70), (100, length)] if length > 100 else [(5, length)]
    whole = example(length, spans)
    pieces = truncation.chunks(whole, most, Chunk(overlap=overlap, min_length=shortest))
    assert all(shortest <= len(piece.input_ids) <= most for piece in pieces)
    assert rebuilt(pieces, overlap) == whole.input_ids.tolist()
    assert learned(pieces) == learned([whole])


def test_control_pieces_that_do_not_overlap_lose_a_token_each() -> None:
    whole = example(300, [(0, 300)])
    cut = [truncation.piece(whole, start, start + 100, 0) for start in (0, 100, 200)]
    assert [token for piece in cut for token in piece.input_ids.tolist()] == whole.input_ids.tolist()
    assert sorted(set(learned([whole])) - set(learned(cut))) == [100, 200]
    twice = [truncation.piece(whole, start, start + 100, 0) for start in (0, 80, 160, 240)]
    assert max(Counter(learned(twice)).values()) == 2, "overlap without context is learned twice"


def test_chunks_with_nothing_to_learn_are_counted(tmp_path: Path) -> None:
    made = encoder(tmp_path, 100, "chunk")
    (outcome,) = made([Completion("x" * 350, "y" * 150)])
    assert not isinstance(outcome, RowError)
    assert (len(outcome.examples), outcome.unsupervised) == (3, 3)
    assert sum(truncation.targets(one.spans) for one in outcome.examples) == 151


def naive(query: str, texts: list[str]) -> list[float]:
    """The formula term by term, over the query's words one after the other."""
    split = [text.lower().split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    found = []
    for words in split:
        total = 0.0
        for word in query.lower().split():
            n, tf = sum(word in other for other in split), words.count(word)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            total += idf * tf * 1.9 / (tf + 0.9 * (0.6 + 0.4 * len(words) / mean))
        found.append(total)
    return found


def test_bm25_is_its_formula() -> None:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["red", "green", "blue", "cloth", "needle", "thread"], k=k))
        for k in range(1, 20)
    ]
    for query in ("red needle", "red red thread", "velvet"):
        assert bm25.scores(query, texts) == pytest.approx(naive(query, texts), rel=1e-12)
    assert bm25.words("Größe 12, 裁縫の針!") == ["größe", "12", *"裁縫の針"]
    assert bm25.words("हिन्दी भाषा। שָׁלוֹם־עולם مُحَمَّد،") == ["हिन्दी", "भाषा", "שָׁלוֹם", "עולם", "مُحَمَّد"]
    assert bm25.words("cafe\u0301") == bm25.words("café") == ["café"]
    assert bm25.scores("ไทย", ["ภาษาไทยง่าย", "sea"])[0] > 0 == bm25.scores("हद", ["हिन्दी", "द"])[0]
    assert bm25.scores("針", ["絹の針", "絹の糸"])[0] > 0 == bm25.scores("針", ["絹の針", "絹の糸"])[1]


FILL = "The shop is open and the cloth is on the table as it was before. "
NEEDLE = "The velvet waistcoat of Mister Percy costs ninety shillings. "
QUESTION = "\nHow many shillings does the velvet waistcoat cost?"
ANSWER = " ninety"


def encoder(folder: Path, most: int, way: str) -> Encoder:
    tokenizer = load_tokenizer(str(byte_tokenizer(folder)))
    return Encoder(
        tokenizer,
        turn_rules(tokenizer),
        train_on="assistant",
        max_length=most,
        on_long=way,
        retrieve=Retrieve(passage=64, question=60),
    )


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize("depth", [5, 20, 38])
def test_the_passage_with_the_answer_is_kept(tmp_path: Path, kind: str, depth: int) -> None:
    prompt = FILL * depth + NEEDLE + FILL * (40 - depth) + QUESTION
    record: Any = Completion(prompt, ANSWER)
    if kind == "chat":
        record = Chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": ANSWER}])
    made = encoder(tmp_path, 512, "retrieve")
    (whole,) = made.encode([record])
    (outcome,) = made([record])
    assert not isinstance(whole, RowError)
    assert not isinstance(outcome, RowError)
    (one,), text = outcome.examples, made.tokenizer.decode(outcome.examples[0].input_ids.tolist())
    assert 300 < len(one.input_ids) <= 512
    assert "ninety shillings" in text.replace("ninety shillings does", "")
    assert text.rstrip().endswith(("</s>", "<|im_end|>"))
    assert QUESTION.strip() in text
    start = made.tokenizer.decode(whole[0].input_ids[:64].tolist())
    assert text.startswith(start), "the first passage stays"
    assert outcome.passed_over == len(whole[0].input_ids) - len(one.input_ids)
    assert outcome.supervised_cut == 0
    (span,) = one.spans
    assert ANSWER.strip() in made.tokenizer.decode(one.input_ids[span[0] : span[1]].tolist())


def test_control_the_first_passages_do_not_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "scores", lambda query, texts: [0.0] * len(texts))
    record = Completion(FILL * 20 + NEEDLE + FILL * 20 + QUESTION, ANSWER)
    (outcome,) = encoder(tmp_path, 512, "retrieve")([record])
    assert not isinstance(outcome, RowError)
    assert "ninety shillings" not in encoder(tmp_path, 512, "retrieve").tokenizer.decode(
        outcome.examples[0].input_ids.tolist()
    )


def test_no_room_for_a_passage_is_reported(tmp_path: Path) -> None:
    (outcome,) = encoder(tmp_path, 512, "retrieve")([Completion(FILL + QUESTION, " ninety" * 100)])
    assert isinstance(outcome, RowError)
    assert outcome.reason == "too_long"
    assert "question and answer leave no room for two passages in data.max_length: 512" in outcome.detail


def test_a_text_without_a_question_is_named(tmp_path: Path) -> None:
    made = encoder(tmp_path, 512, "retrieve")
    long, short = made([Text(FILL * 40), Text(FILL)])
    assert isinstance(long, RowError)
    assert long.detail.endswith("plain text has no question for which passages could be retrieved")
    assert not isinstance(short, RowError)


def test_a_supervised_turn_in_a_passage_that_is_left_out_is_counted(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": FILL * 10 + "Shall I?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": FILL * 10 + NEEDLE + QUESTION},
        {"role": "assistant", "content": ANSWER},
    ]
    (outcome,) = encoder(tmp_path, 400, "retrieve")([Chat(turns)])
    assert not isinstance(outcome, RowError)
    kept = truncation.targets(outcome.examples[0].spans)
    (whole,) = encoder(tmp_path, 400, "retrieve").encode([Chat(turns)])
    assert not isinstance(whole, RowError)
    assert kept + outcome.supervised_cut == truncation.targets(whole[0].spans)
