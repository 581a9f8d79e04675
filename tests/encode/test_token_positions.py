"""Positions from the bytes of tokens are those that the tokenizer tracks, or there are none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.token_positions import ByteCounts, Offsets
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.tokenizers import bpe_tokenizer, sentencepiece_tokenizer

PIECES = (
    "a house",
    " at the",
    "\n",
    "\n\n",
    "  ",
    "é",
    "漢字",
    "😀",
    "👩‍👩‍👧",
    "<s>",
    "12345",
    "don't",
    "\u00a0",
    "e\u0301",
)
NFC = {"type": "NFC"}


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Tokenizer:
    path = bpe_tokenizer(folder) / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return load_tokenizer(str(folder))


def texts() -> list[str]:
    draw = random.Random(3)
    return ["", "<s>", *("".join(draw.choices(PIECES, k=draw.randint(1, 12))) for _ in range(60))]


def test_positions_are_those_of_the_offsets(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    split_characters = 0
    for text in texts():
        (found,) = tokenizer.encode_with_positions([text])
        tracked = Offsets(tokenizer._backend.encode_batch([text], add_special_tokens=False)[0])
        assert isinstance(found, ByteCounts)
        assert found.ids.tolist() == tracked.ids.tolist() == tokenizer.encode(text)
        for token in range(len(tracked.ids)):
            assert (found.start(token), found.end(token)) == (tracked.start(token), tracked.end(token))
            split_characters += token > 0 and found.start(token) < found.end(token - 1)
        for character in range(len(text) + 1):
            for what in ("first", "first_after", "is_crossed"):
                assert getattr(found, what)(character) == getattr(tracked, what)(character), (text, character)
    assert split_characters > 20, "the control: tokens that are a part of a character are among them"


def without_a_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["ð"]  # the first byte of an emoji
    content["model"]["unk_token"] = "</s>"


def with_prefix_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = dict.fromkeys(("add_prefix_space", "use_regex", "trim_offsets"), True)
    content["pre_tokenizer"]["type"] = "ByteLevel"


def lowercased(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("edit", [without_a_byte, with_prefix_space, lowercased])
def test_other_tokenizers_track_offsets(edit: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, edit)
    assert all(isinstance(one, Offsets) for one in tokenizer.encode_with_positions(["A house", "at the sea"]))


def test_a_text_whose_bytes_the_tokenizer_lacks_tracks_offsets(tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        without_a_byte(content)
        content["model"]["unk_token"] = None  # as in SmolLM2: the byte is left out

    found = edited(tmp_path, edit).encode_with_positions(["a 😀 house", "a house"])
    assert [type(one) for one in found] == [Offsets, ByteCounts]


def test_sentencepiece_tracks_offsets(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_tokenizer(tmp_path)))
    for continues in (False, True):
        (found,) = tokenizer.encode_with_positions(["a house"], continues=continues)
        assert isinstance(found, Offsets)


def test_only_texts_that_stay_as_they_are_count_bytes(tmp_path: Path) -> None:
    def nfc(content: dict[str, Any]) -> None:
        content["normalizer"] = NFC

    def takes_spaces(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["lstrip"] = True

    composed = edited(tmp_path / "nfc", nfc).encode_with_positions(["café", "cafe\u0301", "\u0344", "plain"])
    assert [type(one) for one in composed] == [ByteCounts, Offsets, Offsets, ByteCounts]
    stripped = edited(tmp_path / "strip", takes_spaces).encode_with_positions(["a  <s>b", "a<s>b", "a b"])
    assert [type(one) for one in stripped] == [Offsets, ByteCounts, ByteCounts]
    assert [stripped[0].start(at) for at in range(len(stripped[0].ids))][-2:] == [
        1,
        6,
    ]  # the spaces are its own
