"""A token store made by hand, for tests that need examples of known ids."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tailor.data.token_store import MANIFEST, ShardWriter, TokenStore, ragged
from tailor.store import Store

Spans = Sequence[tuple[int, int]]


def write_tokens(
    url: str,
    splits: Mapping[str, Sequence[tuple[Sequence[int], Spans]]],
    *,
    source: int | Mapping[str, Sequence[int]] = 0,
    template: dict | None = None,
    fingerprint: str = "made-by-hand",
) -> TokenStore:
    """Write {split: [(input_ids, spans), …]} under `url`. `source`: one index, or one per example and split."""
    store, shards = Store(url), []
    with tempfile.TemporaryDirectory() as folder:
        for split, examples in splits.items():
            sources = [source] * len(examples) if isinstance(source, int) else list(source[split])
            cuts = [at for at in range(1, len(examples)) if sources[at] != sources[at - 1]]
            for number, part in enumerate(np.split(np.arange(len(examples)), cuts)):
                if not len(part):
                    continue
                name = f"{split}-{number:05d}.arrow"
                writer = ShardWriter(Path(folder) / name)
                ids = [np.asarray(examples[i][0], np.int32) for i in part]
                spans = [np.asarray(examples[i][1], np.int32).reshape(-1) for i in part]
                writer.write(
                    ragged(np.concatenate(ids), np.array([len(x) for x in ids])),
                    ragged(np.concatenate(spans), np.array([len(x) for x in spans])),
                    sources[part[0]],
                    part + 1,
                )
                writer.close()
                store.write_bytes(name, (Path(folder) / name).read_bytes())
                shards.append(
                    {
                        "split": split,
                        "name": name,
                        "first_row": 0,
                        "files": ["rows.jsonl"],
                        "datasets": [],
                        "examples": len(part),
                    }
                )
    store.write_json(
        MANIFEST,
        {"fingerprint": fingerprint, "template": template, "shards": shards, "report": {"sources": []}},
    )
    return TokenStore.open(url)
