"""Tokenizers and a prepared data file that the tests of encode share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.preparation import Bench
from tests.helpers.tokenizers import STRIPPING_TAGS, TAGS, bpe_tokenizer, sentencepiece_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two byte-level tokenizers, a SentencePiece-like one, and one whose tags swallow the space after them."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bpe": bpe_tokenizer(folder / "bpe", tags=(*TAGS, "<|end|>")),
        "gpt2": bpe_tokenizer(folder / "gpt2", tags=(*TAGS, "<|end|>"), pattern=None),
        "sentencepiece": sentencepiece_tokenizer(folder / "sentencepiece", tags=(*TAGS, "<|end|>")),
        "stripping": sentencepiece_tokenizer(folder / "stripping", tags=(*TAGS, *STRIPPING_TAGS)),
    }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
