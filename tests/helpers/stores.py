"""Token stores made of random documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tailor.data.token_store import MANIFEST, ShardWriter, TokenStore, ragged
from tailor.store import Store
from tailor.store.publication import Publication

VOCABULARY = 261


def commit(store: Store, name: str, files: dict[str, str | bytes]) -> None:
    """Publish a folder of these files."""
    with Publication(store, name) as made:
        for file, content in files.items():
            (made.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (made.folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def make_store(
    folder: Path,
    lengths: Sequence[int],
    *,
    evaluation: Sequence[int] = (),
    sources: Sequence[int] | None = None,
    seed: int = 0,
) -> TokenStore:
    """Documents of these lengths; about the last two thirds of each are supervised."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shards = []
    for split, split_lengths in (("train", lengths), ("evaluation", evaluation)):
        ids = [generator.integers(5, VOCABULARY, size=length) for length in split_lengths]
        if not ids:
            continue
        name = f"{split}-00000.arrow"
        writer = ShardWriter(folder / name)
        for source in sorted(set(sources or [0])):
            chosen = [
                i for i in range(len(ids)) if split != "train" or (sources or [0] * len(ids))[i] == source
            ]
            values = np.concatenate([ids[i] for i in chosen])
            spans = np.array([(len(ids[i]) // 3, len(ids[i])) for i in chosen]).reshape(-1)
            writer.write(
                ragged(values, np.array([len(ids[i]) for i in chosen])),
                ragged(spans, np.full(len(chosen), 2)),
                source,
                np.array(chosen) + 1,
            )
        writer.close()
        shards.append({"name": name, "split": split, "first_row": 0, "files": ["rows.jsonl"], "datasets": []})
    manifest = {"fingerprint": "made", "template": None, "shards": shards, "report": {}}
    Store(str(folder)).write_json(MANIFEST, manifest)
    return TokenStore.open(str(folder))
