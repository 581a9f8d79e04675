"""Embeddings: pooling as its definition says, any batching the same, and nothing lost between save and load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tailor.artifacts.load_embedder import load_embedder
from tailor.encode.embedding_examples import TextEncoder, TextFormat
from tailor.encode.tokenizer import load_tokenizer
from tailor.errors import DataError, ModelError, StoreError
from tailor.layout import EMBEDDING, PROJECTION
from tailor.models.embedding import embedder
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.pooling import finish, new_projection, pool, shorten
from tailor.models.embedding.settings import Embedding
from tests.helpers.models import byte_tokenizer, tiny_llama
from tests.helpers.tokenizers import bpe_tokenizer, sentencepiece_tokenizer

TEXTS = ["a", "the sea is wide", "hello", "Ein längerer Satz mit mehr Wörtern darin.", "b" * 40]
INSTRUCTION = "Represent this text:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def saved(folder: Path, **settings: Any) -> Path:
    projection = new_projection(64, 16, seed=3)
    Embedding(dimension=16, projection=True, max_length=64, **settings).write(folder, projection.state_dict())
    return folder


@pytest.mark.parametrize("layout", ["stream", "rows"])
def test_pooling_by_its_definition(layout: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [(np.arange(9), np.array([[3, 9]])), (np.arange(5), np.array([[1, 2], [3, 5]]))]
    batch = lay_out_texts(texts, layout)
    assert batch.pool is not None
    hidden = torch.randn(*batch.input_ids.shape, 4, generator=generator)
    flat = list(hidden[0, :14].split([9, 5])) if layout == "stream" else [hidden[0, :9], hidden[1, :5]]
    own = [flat[0][3:9], flat[1][[1, 3, 4]]]
    wanted = {
        "mean": [part.mean(0) for part in own],
        "weightedmean": [
            (part * torch.arange(1, len(part) + 1)[:, None]).sum(0) / sum(range(len(part) + 1))
            for part in own
        ],
        "lasttoken": [part[-1] for part in own],
        "cls": [part[0] for part in flat],
    }
    for pooling, vectors in wanted.items():
        assert torch.allclose(pool(hidden, batch.pool, pooling), torch.stack(vectors), atol=1e-6), pooling


def test_a_shorter_embedding_has_length_one() -> None:
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    cut = shorten(vectors, 4, normalize=True)
    assert cut.shape == (3, 4)
    assert cut.dtype == torch.float32
    assert torch.allclose(cut.norm(dim=-1), torch.ones(3))


def test_a_projection_is_computed_in_float32() -> None:
    projection = new_projection(8, 4, seed=0)
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here, control = finish(vectors, projection), projection(vectors)
    assert torch.equal(here, projection(vectors))
    assert control.dtype == torch.bfloat16


def test_texts_are_the_same_however_they_are_batched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_embedder(str(saved(folder)))
    assert one.model.layout == "stream"
    whole = one.encode(TEXTS, INSTRUCTION)
    assert whole.shape == (5, 16)
    assert whole.dtype == np.float32
    alone = np.concatenate([one.encode([text], INSTRUCTION) for text in TEXTS])
    assert np.allclose(whole, alone, atol=1e-5)
    monkeypatch.setitem(embedder.BATCH_TOKENS, "cpu", 100)
    assert np.allclose(whole, one.encode(TEXTS, INSTRUCTION), atol=1e-5)
    assert float(np.abs(whole - one.encode(TEXTS)).max()) > 0.05, "an instruction changes them"


def test_a_model_without_its_projection_is_rejected(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(saved(folder), tmp_path / "copy")
    before = load_embedder(str(folder)).encode(TEXTS)
    assert np.array_equal(before, load_embedder(str(tmp_path / "copy")).encode(TEXTS))
    (tmp_path / "copy" / PROJECTION).unlink()
    with pytest.raises(ModelError, match="without it the embeddings would be wrong"):
        load_embedder(str(tmp_path / "copy"))
    Embedding(dimension=16, projection=True).write(
        tmp_path / "copy", new_projection(64, 16, seed=4).state_dict()
    )
    assert float(np.abs(before - load_embedder(str(tmp_path / "copy")).encode(TEXTS)).max()) > 0.05
    (tmp_path / "copy" / EMBEDDING).write_text("{}")
    with pytest.raises(StoreError, match="is damaged: it has no pooling"):
        load_embedder(str(tmp_path / "copy"))


def test_long_texts_are_counted_and_empty_ones_rejected(folder: Path) -> None:
    one = load_embedder(str(saved(folder)), max_length=40)
    one.encode(["x" * 100, "short"])
    assert one.truncated == 1
    with pytest.raises(DataError, match="text 1 is empty"):
        one.encode(["a", ""])


@pytest.mark.parametrize("text", ["hello", "\nhello", "  two spaces", "!sign", "|>"])
@pytest.mark.parametrize("make", [byte_tokenizer, bpe_tokenizer, sentencepiece_tokenizer])
def test_a_text_has_the_tokens_that_it_has_alone(text: str, make: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make(tmp_path)))
    encoded = TextEncoder(tokenizer)([(INSTRUCTION, text)])[0]
    alone = next(iter(tokenizer.encode_batch([text], continues=True))).tolist()
    assert list(encoded.input_ids[encoded.start :]) == alone
    head = [tokenizer.bos_id, *tokenizer.encode("<|user|>\nRepresent this text\n<|embed|>\n")]
    assert list(encoded.input_ids[: encoded.start]) == head


def test_encoded_together_a_text_would_melt_into_the_tag(tmp_path: Path) -> None:
    """The control: with a splitting pattern like Qwen's, the length of the format alone is no border in the whole."""
    tokenizer = load_tokenizer(str(bpe_tokenizer(tmp_path)))
    head, text = "a house at the sea.", "\n\nOnce"
    together, (alone,) = tokenizer.encode(head + text), tokenizer.encode_batch([text], continues=True)
    assert together[len(tokenizer.encode(head)) :] != alone.tolist()
    encoded = TextEncoder(tokenizer, TextFormat("{instruction}", head))([(None, text)])[0]
    assert encoded.input_ids[encoded.start :].tolist() == alone.tolist()


def test_only_the_text_is_cut(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_tokenizer(tmp_path, bos=True)))
    encoder = TextEncoder(tokenizer, TextFormat("i{instruction}e", "e"))
    whole, cut = (encoder([("AB", "text")], length)[0] for length in (None, 7))
    assert tokenizer.decode(cut.input_ids[1:]) == "iABete"
    assert (cut.start, cut.cut, whole.cut) == (5, 2, 0)
    with pytest.raises(DataError, match="leaves no room for a text in the maximum length of 5"):
        encoder([("AB", "text")], 5)


def test_settings_of_before_the_key_bos_keep_the_tokens(tmp_path: Path) -> None:
    Embedding(dimension=16).write(tmp_path, None)
    values = json.loads((tmp_path / EMBEDDING).read_text())
    assert values["format"].pop("bos") is True
    (tmp_path / EMBEDDING).write_text(json.dumps(values))
    settings, _ = Embedding.read(tmp_path, str(tmp_path))
    assert settings.format.bos is False
