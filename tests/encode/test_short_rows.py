"""`data.min_length`: shorter rows are left out, counted with their reason, and no loss that the budget limits."""

from __future__ import annotations

import pytest

from tailor.encode.examples import Encoder, Outcome
from tailor.encode.records import Completion, Pair, RowError, Text
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError
from tailor.spec.data import Data
from tailor.spec.methods.base import AnswerLimits
from tailor.spec.methods.pretrain import Pretrain
from tests.helpers.models import byte_tokenizer
from tests.helpers.preparation import contents, write


def test_short_rows_are_counted_and_have_no_budget(bench):
    texts = [{"text": "x" * length} for length in (99, 100, 5, 300, 98)]
    path = write(bench.folder / "texts.jsonl", texts)

    def prepared(**data):
        return bench(train=[{"path": path}], method=Pretrain(name="pretrain", documents="isolate"), **data)

    made = prepared(min_length=100, on_long="truncate", max_length=200)
    # A text has EOS after it: 99 characters are 100 tokens.
    assert [row for _, row, _, _ in contents(made.tokens)] == [1, 2, 4]
    (report,) = made.tokens.manifest["report"]["sources"]
    lost = report["removed"]["too_short"]
    assert lost["count"] == 2
    assert lost["first"][0] == [f"{path}:3", "6 tokens; data.min_length is 100"]
    assert report["dropped"] == report["unreadable"] == {}
    everything = prepared(on_long="truncate", max_length=200)
    assert not everything.reused, "the key is part of the fingerprint"
    assert len(contents(everything.tokens)) == 5
    with pytest.raises(DataError, match=r"none of its 5 rows can be used\n  5 too_short") as caught:
        prepared(min_length=1000)
    assert caught.value.hint == "lower data.min_length"


@pytest.mark.parametrize("on_long", ["drop", "truncate", "chunk"])
def test_a_row_is_measured_before_it_is_shortened(tmp_path, on_long):
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)))
    made = Encoder(tokenizer, None, train_on="everything", max_length=50, on_long=on_long, min_length=100)
    short, long = made([Text("x" * 60), Text("x" * 120)])
    assert isinstance(short, RowError)
    assert short.reason == "too_short"
    assert isinstance(long, Outcome) == (on_long != "drop")


def test_a_pair_has_the_length_of_its_longest_answer(tmp_path):
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path)))
    made = Encoder(
        tokenizer,
        None,
        train_on="assistant",
        max_length=200,
        on_long="drop",
        min_length=50,
        limits=AnswerLimits(),
    )
    kept, lost = made(
        [
            Pair(Completion("p", "y" * 60), Completion("p", "n")),
            Pair(Completion("p", "y"), Completion("p", "n")),
        ]
    )
    assert isinstance(kept, Outcome)
    assert isinstance(lost, RowError)
    assert Data(train=[{"path": "x"}]).min_length is None
