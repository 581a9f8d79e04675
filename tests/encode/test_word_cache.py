"""The word cache gives the tokens that the tokenizer gives, and is used only where that is certain."""

from __future__ import annotations

import json
import pickle
import random
import re
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailor.encode import word_cache
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tailor.encode.word_cache import LLAMA_3, QWEN_2
from tailor.errors import DataError
from tests.helpers.tokenizers import bpe_tokenizer, sentencepiece_tokenizer

PIECES = (
    "house",
    "sea",
    "don't",
    "'s",
    "12345",
    "7",
    ",",
    ".)",
    "?!",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\x1c",
    "é",
    "e\u0301",
    "\u0301",
    "漢字",
    "👩‍👩‍👧",
    "<s>",
    "<|im_end|>",
    "<|im_",
)


def edited(folder: Path, edit: Callable[[dict[str, Any]], None], **settings: Any) -> Tokenizer:
    path = bpe_tokenizer(folder, **settings) / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return load_tokenizer(str(folder))


def unchanged(_: dict[str, Any]) -> None:
    pass


def composes(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}


def splits_digits(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})


def adds_spaces(content: dict[str, Any]) -> None:
    """As GPT-NeoX and OLMo."""
    entry = content["added_tokens"][0]
    content["added_tokens"].append(
        {**entry, "id": 400, "content": "  ", "special": False, "normalized": True}
    )


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")


@pytest.mark.parametrize("pattern", [None, LLAMA_3, QWEN_2], ids=["gpt-2", "llama-3", "qwen-2"])
@pytest.mark.parametrize("edit", [unchanged, composes, splits_digits, adds_spaces])
def test_every_text_has_the_tokens_of_the_tokenizer(
    edit: Callable[[dict[str, Any]], None],
    pattern: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = edited(tmp_path, edit, pattern=pattern)
    assert tokenizer._word_cache is not None
    monkeypatch.setattr(word_cache, "MAX_PIECES", 2000)  # it starts again in between
    draw = random.Random(7)
    texts = ["", *("".join(draw.choices(PIECES, k=draw.randint(1, 14))) for _ in range(4000))]
    found = [ids for at in range(0, len(texts), 64) for ids in tokenizer.encode_batch(texts[at : at + 64])]
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == tokenizer.encode(text), text
    # The control: cut at each space, texts have other tokens.
    apart = [[token for part in text.split(" ") for token in tokenizer.encode(part)] for text in texts]
    assert sum(one != ids.tolist() for one, ids in zip(apart, found, strict=True)) > 1000


@pytest.mark.parametrize("pattern", [None, LLAMA_3], ids=["gpt-2", "llama-3"])
def test_a_space_after_any_character(pattern: str | None, tmp_path: Path) -> None:
    """What is whitespace is the same for Python and for the tokenizer."""
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path, pattern=pattern)))
    texts = [f"a{chr(code)}  b" for code in range(1, 0x3100)]  # whitespace has no larger codes
    whole = tokenizer._backend.encode_batch_fast(texts, add_special_tokens=False)
    found = tokenizer.encode_batch(texts)
    assert all(ids.tolist() == one.ids for ids, one in zip(found, whole, strict=True))


def test_a_word_is_encoded_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    cache, encoded = tokenizer._word_cache, []
    assert cache is not None
    encode = cache._encode
    cache._encode = lambda pieces: [encoded.extend(pieces), encode(pieces)][1]
    for _ in range(2):
        tokenizer.encode_batch(["a house, a sea", "a house"])
        tokenizer.encode_with_positions(["the house"])
    assert encoded == ["a", " house,", " a", " sea", " house", "the"]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_batch(["a sea"])[0].tolist() == tokenizer.encode("a sea")


def test_a_lone_surrogate_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    for _ in range(2):
        with pytest.raises(DataError, match="not valid Unicode"):
            tokenizer.encode_batch(["a house", "the \ud800 sea"])
        (ids,) = tokenizer.encode_batch(["a house"])
        assert ids.tolist() == tokenizer.encode("a house")


def test_texts_that_repeat_no_words_are_encoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "FIRST_PIECES", 50)
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    cache, encoded = tokenizer._word_cache, []
    assert cache is not None
    encode = cache._encode
    cache._encode = lambda pieces: [encoded.extend(pieces), encode(pieces)][1]
    texts = [" ".join(f"{number * 10 + one}x" for one in range(10)) for number in range(100)]
    for text in texts:
        (ids,) = tokenizer.encode_batch([text])
        assert ids.tolist() == tokenizer.encode(text)
    assert encoded[:50] == [piece for text in texts[:5] for piece in word_cache._PIECE.findall(text)]
    assert sum(one in texts for one in encoded[50:]) > 80
    # Words that repeat pay for themselves.
    encoded.clear()
    for _ in range(100):
        tokenizer.encode_batch(["a house at the sea and a house"])
    assert len(encoded) < 50
    assert " and" in encoded


def test_other_threads_go_on_while_one_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does the child of a fork, where no other thread could free a lock. And one that fills the cache takes nothing away."""
    monkeypatch.setattr(word_cache, "MAX_PIECES", 2)
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    cache = tokenizer._word_cache
    assert cache is not None
    encode, others, found = cache._encode, [["the sea is the sea"]], []

    def encode_others() -> None:
        found.extend(tokenizer.encode_batch(others.pop()))

    def encode_beside(pieces: list[str]) -> Any:
        if others:
            other = threading.Thread(target=encode_others, daemon=True)
            other.start()
            other.join(60)
        return encode(pieces)

    tokenizer.encode_batch(["a house"])
    cache._encode = encode_beside
    found += tokenizer.encode_batch(["a house, a tree"])
    texts = ["the sea is the sea", "a house, a tree"]
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]


def test_each_text_has_its_own_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    texts = ["a house at the sea", "a", ""]
    for _ in range(2):
        found = list(tokenizer.encode_batch(texts))
        assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]
        assert [ids.dtype for ids in found] == [np.int32] * 3
        assert found[1].base is not found[0].base, "one would keep the memory of all"
        for ids in found:
            ids[:] = -1


def test_a_text_without_spaces_needs_little_memory() -> None:
    text = "a\t" * 100_000
    peaks = []
    for pattern in (
        word_cache._PIECE,
        re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*|\s+"),
    ):  # the second is the control
        tracemalloc.start()
        pattern.findall(text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 3 * len(text) < peaks[1]


def other_pattern(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+ \p{L}+|."}


def no_pattern(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]


def removes(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"


def drops(content: dict[str, Any]) -> None:
    content["model"]["dropout"] = 0.1


def takes_spaces(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["rstrip"] = True


def has_a_space(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "a house"})


@pytest.mark.parametrize("edit", [other_pattern, no_pattern, removes, drops, takes_spaces, has_a_space])
def test_other_tokenizers_have_no_cache(edit: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    assert edited(tmp_path, edit)._word_cache is None


def test_neither_have_other_kinds_nor_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_tokenizer(str(sentencepiece_tokenizer(tmp_path / "pieces")))._word_cache is None
    folder = str(bpe_tokenizer(tmp_path / "bytes"))
    monkeypatch.setenv("RAYON_NUM_THREADS", "5")
    assert load_tokenizer(folder)._word_cache is None
    monkeypatch.setenv("RAYON_NUM_THREADS", "4")
    assert load_tokenizer(folder)._word_cache is not None
