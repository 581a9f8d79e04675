"""Rows of queries with passages, and a store of them without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tailor.data.token_store import MANIFEST, ShardWriter, TokenStore, ragged
from tailor.store import Store

FORMAT = 3
"""Tokens of a text that are not its own."""


def make_grit_store(
    folder: Path,
    *,
    queries: int,
    examples: int = 0,
    answers: int = 2,
    others: int = 3,
    sources: Sequence[int] | None = None,
    evaluation: int = 0,
    lengths: tuple[int, int] = (5, 14),
    seed: int = 0,
    head: Sequence[int] = (7,) * FORMAT,
    **changed: Any,
) -> TokenStore:
    """Random texts of random lengths: `queries` with passages in one or several sources, then `examples` to generate.

    head: the tokens before each text, which are the prompt of one to generate. Passages have random scores of a teacher. changed: {number of a training example: its own tokens} to put in place of random ones, as `texts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    texts: dict[int, Sequence[int]] = changed.get("texts", {})
    shards, number = [], 0
    for split, count, free in (("train", queries, examples), ("evaluation", evaluation, evaluation)):
        owners = list(sources) if sources is not None and split == "train" else [0] * count
        for source in [*dict.fromkeys(owners), max([0, *owners]) + 1]:
            mine = owners.count(source)
            groups = [1 + answers + others] * mine if mine else [1] * free
            if not groups:
                continue
            ids, spans, places, good = [], [], [], []
            for size in groups:
                for place in range(size):
                    own = generator.integers(5, 261, generator.integers(*lengths))
                    own = np.array(texts.get(number, own)) if split == "train" else own
                    ids.append(np.concatenate([np.array(head), own]).astype(np.int32))
                    spans.append((FORMAT, len(ids[-1])))
                    places.append(place)
                    good.append(place <= answers)
                    number += split == "train"
            name = f"{split}-{len(shards):05d}.arrow"
            writer = ShardWriter(folder / name)
            writer.write(
                ragged(np.concatenate(ids), np.array([len(one) for one in ids])),
                ragged(np.array(spans).reshape(-1), np.full(len(ids), 2)),
                source,
                np.arange(1, len(ids) + 1),
                positions=np.array(places),
                is_positive=np.array(good),
                scores=np.random.default_rng([seed, len(shards)]).normal(size=len(ids)),
            )
            writer.close()
            shards.append(
                {
                    "split": split,
                    "name": name,
                    "first_row": 0,
                    "files": ["rows.jsonl"],
                    "datasets": [],
                    "examples": len(ids),
                }
            )
    store = Store(str(folder))
    store.write_json(
        MANIFEST,
        {"fingerprint": f"two-{seed}", "template": None, "shards": shards, "report": {"sources": []}},
    )
    return TokenStore.open(store.url)


def write_groups(
    folder: Path, splits: dict[str, list[list[tuple[Sequence[int], list[tuple[int, int]]]]]]
) -> TokenStore:
    """A store of groups [(input_ids, spans), …]; those named `sentences` follow those of `train` as another source."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for source, (split, groups) in enumerate(splits.items()):
        members = [member for group in groups for member in group]
        name = f"{split}-00000.arrow"
        writer = ShardWriter(folder / name)
        writer.write(
            ragged(np.concatenate([ids for ids, _ in members]), np.array([len(ids) for ids, _ in members])),
            ragged(
                np.array([spans for _, spans in members]).reshape(-1),
                np.array([2 * len(s) for _, s in members]),
            ),
            source,
            np.arange(1, len(members) + 1),
            positions=np.array([place for group in groups for place in range(len(group))]),
        )
        writer.close()
        own = "train" if split == "sentences" else split
        shards.append(
            {
                "split": own,
                "name": name,
                "first_row": 0,
                "files": ["rows.jsonl"],
                "datasets": [],
                "examples": len(members),
            }
        )
    store = Store(str(folder))
    manifest = {"fingerprint": folder.name, "template": None, "shards": shards, "report": {"sources": []}}
    store.write_json(MANIFEST, manifest)
    return TokenStore.open(store.url)
