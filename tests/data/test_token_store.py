"""The token store's reading side."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailor.data.token_store import ShardWriter, TokenStore, ragged
from tailor.errors import StoreError
from tests.helpers.tokens import write_tokens

EXAMPLES = [([1, 2, 3], [(0, 2)]), ([4, 5], []), ([6, 7, 8, 9], [(1, 2), (3, 4)]), ([10], [(0, 1)])]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_reads_back(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_CACHE", str(tmp_path / "cache"))
    url = str(tmp_path / "tokens") if kind == "local" else f"memory://{uuid.uuid4().hex}"
    template = {"name": "chatml", "text": "…", "end_of_turn_ids": [4]}
    write_tokens(
        url,
        {"train": EXAMPLES, "evaluation": []},
        source={"train": [0, 0, 1, 1], "evaluation": []},
        template=template,
    )
    store = TokenStore.open(url)
    split = store.split("train")
    assert len(split) == 4
    assert len(store.split("evaluation")) == 0
    assert split.lengths.tolist() == [3, 2, 4, 1]
    assert split.lengths.dtype == np.int32
    # A supervised token at position 0 is the target of nothing.
    assert split.supervised.tolist() == [1, 0, 2, 0]
    assert split.supervised.dtype == np.int32
    assert split.source.tolist() == [0, 0, 1, 1]
    assert split.source.dtype == np.int16
    assert split.row.tolist() == [1, 2, 3, 4]
    assert split.row.dtype == np.int64
    for index, (ids, spans) in enumerate(EXAMPLES):
        example = split.example(index)
        assert example.input_ids.tolist() == ids
        assert example.input_ids.dtype == np.int32
        assert example.spans.tolist() == [list(span) for span in spans]
        assert example.spans.shape[1] == 2
    with pytest.raises(IndexError):
        split.example(4)
    assert store.template == template
    assert store.fingerprint == "made-by-hand"


def test_row_numbers_continue_from_the_shard_before(tmp_path):
    store = write_tokens(str(tmp_path), {"train": EXAMPLES})
    manifest = store.manifest
    manifest["shards"][0]["first_row"] = 100
    assert TokenStore(store.url, manifest).split("train").row.tolist() == [101, 102, 103, 104]


def test_a_folder_without_manifest_does_not_exist(tmp_path):
    store = write_tokens(str(tmp_path / "t"), {"train": EXAMPLES})
    (tmp_path / "t" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="contains no prepared tokens"):
        TokenStore.open(store.url)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise OSError(28, "Error writing bytes to file")

    writer = ShardWriter(tmp_path / "shard.arrow")
    monkeypatch.setattr(writer, "_writer", SimpleNamespace(write_batch=full))
    tokens = ragged(np.array([1, 2], np.int32), np.array([2], np.int32))
    with pytest.raises(StoreError, match=f"^{tmp_path} cannot be written: no space left on the device"):
        writer.write(tokens, tokens, 0, np.array([1], np.int64))
