"""The text of an answer as it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailor.encode.prompts import answer_text, continuation_text
from tailor.encode.tokenizer import Tokenizer, load_tokenizer
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
    assert "".join(pieces(tokenizer, "one END two", "END")) == "one"
    found = pieces(tokenizer, "one EN two EN", "END")
    assert "".join(found) == "one EN two EN"
    assert "E" not in found, "a possible beginning of a stop text is held back"
    assert "".join(pieces(tokenizer, "abcabd", "abd", "cab")) == "ab", "the first one counts"


@pytest.mark.parametrize(
    ("text", "stop", "shown", "tokens"),
    [
        ("one\n\ntwo", "\n\n", "one", 5),
        ("one \nUser: x", "\nUser:", "one", 10),
        ("\n one", "\n", "", 1),
        ("one 世界 two", "世", "one", 7),
        ("a世", "世", "a", 4),
    ],
)
def test_a_stop_text_of_spaces_or_of_several_tokens_ends_the_answer_at_once(
    tokenizer: Tokenizer, text: str, stop: str, shown: str, tokens: int
) -> None:
    """tokens: number of bytes up to the end of the stop text."""
    found = pieces(tokenizer, text, stop)
    assert "".join(found) == shown
    assert len(found) == tokens


def words(folder: Path) -> Path:
    """A tokenizer whose decoder drops the space at the start of a text, as SentencePiece's."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {"▁one": 0, "▁two": 1, "▁": 2, "\n": 3, "s": 4, "[UNK]": 5}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]", ignore_merges=True))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    byte_tokenizer(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("make", [byte_tokenizer, words])
@pytest.mark.parametrize("text", [" two", " two two", " two "])
def test_a_continuation_keeps_its_spaces(make: Any, text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make(tmp_path)))
    prompt = tokenizer.encode("one")
    ids = tokenizer.encode(f"one{text}")[len(prompt) :]
    stream = TextStream(tokenizer, after=prompt)
    assert "".join([*(stream.take(token) for token in ids), stream.end()]) == text
    assert continuation_text(tokenizer, prompt, ids) == text


def test_a_prompt_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a世b")
    assert continuation_text(tokenizer, ids[:2], ids[2:]) == "世b"


def test_a_token_decodes_a_few_tokens_not_the_whole_answer(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(self: Tokenizer, ids: Any) -> str:
        ids = list(ids)
        decoded.append(len(ids))
        return plain(self, ids)

    plain, text = Tokenizer.decode, "Grüße, 世界 🌍! " * 20
    monkeypatch.setattr(Tokenizer, "decode", decode)
    assert "".join(pieces(tokenizer, text)) == text.strip()
    assert max(decoded) <= 12
