"""Groups of near duplicates: against the exact Jaccard similarity, and for any order of the tasks."""

from __future__ import annotations

import random

import numpy as np

from tailor.encode.records import Completion, Record
from tailor.encode.similarity.signature_file import SIMILARITY, SignatureFile, first_equal
from tailor.encode.similarity.signatures import PERMUTATIONS, Signer
from tailor.encode.similarity.texts import HashedTexts, texts_of
from tailor.encode.similarity.words import ngrams, words


def signatures(records: list[Record]) -> np.ndarray:
    signer = Signer()
    return np.stack([signer(record, HashedTexts.of(texts_of(record))) for record in records])


def grouped(values: np.ndarray, equal: np.ndarray, order: list[np.ndarray]) -> list[int]:
    with SignatureFile() as file:
        for number in range(len(order) - 1, -1, -1):
            file.add(number, [values[order[number]]])
        return file.first_similar(equal).tolist()


def test_pairs_of_each_similarity() -> None:
    """All pairs above 0.85 are found, none below 0.55; the order of the tasks makes no difference."""
    draw = random.Random(0)
    records: list[Record] = []
    similarities = []
    for number in range(300):
        answer = [f"w{draw.randrange(5000)}" for _ in range(60)]
        other = list(answer)
        for at in draw.sample(range(60), number % 8):
            other[at] = f"x{draw.randrange(5000)}"
        records += [Completion(f"q{number}", " ".join(answer)), Completion(f"q{number}", " ".join(other))]
        one, two = ({tuple(text[at : at + 3]) for at in range(58)} for text in (answer, other))
        similarities.append(len(one & two) / len(one | two))
    values = signatures(records)
    equal = np.arange(len(records))
    rows = np.arange(len(records))
    found = [grouped(values, equal, np.array_split(rows, tasks)) for tasks in (1, 2, 8)]
    assert found[0] == found[1] == found[2]
    is_found = np.array(found[0][1::2]) == rows[::2]
    assert found[0][::2] == rows[::2].tolist()
    assert is_found[np.array(similarities) > 0.85].all()
    assert not is_found[np.array(similarities) < 0.55].any()
    shares = (values[::2, PERMUTATIONS:] == values[1::2, PERMUTATIONS:]).mean(axis=1)
    assert np.abs(shares - similarities).max() < 0.2
    assert 0.55 < SIMILARITY < 0.85


def test_a_chain_is_one_group() -> None:
    """A row is similar to the next one, and the last one to none but its neighbor: the first row stands for all."""
    base = [f"w{number}" for number in range(60)]
    chain = [
        " ".join([*base[step * 4 :], *(f"x{number}" for number in range(step * 4))]) for step in range(6)
    ]
    values = signatures([Completion("q", text) for text in chain])
    assert (values[0] == values[5])[PERMUTATIONS:].mean() < SIMILARITY
    assert grouped(values, np.arange(6), [np.arange(6)]) == [0] * 6


def test_many_equal_keys_stay_linear() -> None:
    """20 000 rows with one signature: pairs within a group are not all compared."""
    values = np.repeat(signatures([Completion("q", "one two three four")]), 20_000, axis=0)
    assert set(grouped(values, np.arange(20_000), [np.arange(20_000)])) == {0}


def test_first_equal() -> None:
    assert first_equal(np.array([5, 7, 5, 2, 7, 7], np.uint64)).tolist() == [0, 1, 0, 3, 1, 1]


def test_words_and_ngrams() -> None:
    assert words("It's 2+2 = ４, Straße_x!") == ["it", "s", "2", "+", "2", "=", "4", "strasse", "x"]
    assert words("你好 สวัสดี")[:2] == ["你", "好"]
    assert words("🙂") == ["🙂"]
    assert words("  ") == []
    hashed = np.arange(5, dtype=np.uint64)
    assert len(ngrams(hashed, 3)) == 3
    assert len(ngrams(hashed, 6)) == 0
    assert len(set(ngrams(np.array([1, 2, 1, 2, 1], np.uint64), 2).tolist())) == 2
