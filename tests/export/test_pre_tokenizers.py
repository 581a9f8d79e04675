"""A byte-level tokenizer that llama.cpp's converter does not know, but whose pattern is one of llama.cpp's, gets the same ids."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.tokenizer import load_tokenizer
from tailor.encode.tokenizer_files import PROBES
from tailor.export.gguf import llama_cpp
from tailor.export.gguf.pre_tokenizers import LLAMA_3, QWEN_2, find_pre_tokenizer
from tests.helpers.gguf_files import file_of_zeros
from tests.helpers.tokenizers import bpe_tokenizer, with_odd_merges

pytest.importorskip("cyllama")
pytest.importorskip("gguf")
SIGNS = " \t\n\r'aszRELé日本한ﬁĄ३²½٣,.!?(-_#$€∑🙂👩‍💻\u00a0\u0301\u2028"
WORDS = ["'s", "'RE", "we'll", "  ", "\n\n", "\r\n", "1234", "12 345", "a1b2", "...", "ß", "नमस्ते", "don't"]


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def digits(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})


def whole_words(content: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = True


KNOWN: dict[str, tuple[str | None, Callable[[dict[str, Any]], None]]] = {
    "gpt-2": (None, lambda _: None),
    "smollm": (None, digits),
    "qwen2": (QWEN_2, lambda _: None),
    "smaug-bpe": (LLAMA_3, lambda _: None),
    "llama-bpe": (LLAMA_3, whole_words),
}


@pytest.mark.parametrize("name", KNOWN)
def test_its_ids_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    pattern, change = KNOWN[name]
    folder = changed(with_odd_merges(bpe_tokenizer(tmp_path / "model", pattern=pattern)), change)
    assert find_pre_tokenizer(folder) == name
    own, chooser = load_tokenizer(str(folder)), random.Random(name)
    texts = [*PROBES, *("".join(chooser.choices([*SIGNS, *WORDS], k=12)) for _ in range(400))]
    expected = [own.encode(text) for text in texts]
    assert ids(folder, name, texts) == expected
    other = "qwen2" if name != "qwen2" else "gpt-2"
    assert ids(folder, other, texts) != expected, "the control: the pre-tokenizer matters"


def ids(folder: Path, name: str, texts: list[str]) -> list[list[int]]:
    """The texts' token ids of llama.cpp, with the tokenizer in `folder` and the pre-tokenizer `name`."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"] | {one["content"]: one["id"] for one in content["added_tokens"]}
    special = {one["id"] for one in content["added_tokens"]}
    names = {index: token for token, index in vocabulary.items()}
    tokens = [names.get(at, f"[PAD{at}]") for at in range(max(names) + 1)]

    def add_tokens(writer: Any) -> int:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if at in special else 1 for at in range(len(tokens))])
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        writer.add_add_bos_token(False)
        return len(tokens)

    with llama_cpp.opened(file_of_zeros(folder / f"{name}.gguf", add_tokens)) as file:
        return [file.encode(text, start=False) for text in texts]


UNKNOWN: dict[str, tuple[str | None, Callable[[dict[str, Any]], None]]] = {
    "another pattern": (r"\p{L}+|\s+|[^\s\p{L}]+", lambda _: None),
    "a normalizer": (None, lambda content: content.update(normalizer={"type": "NFKC"})),
    "a space before each text": (
        None,
        lambda content: content["pre_tokenizer"]["pretokenizers"][-1].update(add_prefix_space=True),
    ),
    "groups of digits": (
        None,
        lambda content: content["pre_tokenizer"]["pretokenizers"].insert(
            0, {"type": "Digits", "individual_digits": False}
        ),
    ),
    "a split by another rule": (
        QWEN_2,
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
    ),
    "whole words of GPT-2": (None, whole_words),
    "no pre-tokenizer": (None, lambda content: content.update(pre_tokenizer=None)),
    "byte fallback": (None, lambda content: content["model"].update(byte_fallback=True)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_another_tokenizer_has_no_equal(tmp_path: Path, name: str) -> None:
    pattern, change = UNKNOWN[name]
    assert find_pre_tokenizer(changed(bpe_tokenizer(tmp_path, pattern=pattern), change)) == ""
