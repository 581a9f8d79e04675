"""Token stores of preference data, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tailor.data.token_store import MANIFEST, ShardWriter, TokenStore, ragged
from tailor.store import Store

Answer = tuple[np.ndarray, int, bool]
"""(token ids, length of the prompt, whether the answer is positive)"""


def pairs(
    count: int, *, seed: int = 0, shuffled: bool = False, prompt: tuple[int, int] = (4, 12)
) -> list[list[Answer]]:
    """Pairs of random prompts and answers: letters are preferred to capitals, or by the toss of a coin.

    prompt: fewest tokens of a prompt, and more than the most.
    """
    generator = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        before = generator.integers(5, 261, size=generator.integers(*prompt))
        good, bad = (generator.integers(low, low + 26, size=generator.integers(3, 15)) for low in (70, 38))
        if shuffled and generator.random() < 0.5:
            good, bad = bad, good
        group = [(np.append(np.concatenate([before, answer]), 4), len(before)) for answer in (good, bad)]
        groups.append([(*group[0], True), (*group[1], False)])
    return groups


def rated(count: int, *, seed: int = 0, shuffled: bool = False) -> list[list[Answer]]:
    """One answer of each pair, with its label."""
    generator = np.random.default_rng(seed + 1)
    return [[pair[int(generator.random() < 0.5)]] for pair in pairs(count, seed=seed, shuffled=shuffled)]


def write_groups(
    folder: Path, train: Sequence[Sequence[Answer]], evaluation: Sequence[Sequence[Answer]] = ()
) -> TokenStore:
    """A token store of groups."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for split, groups in (("train", train), ("evaluation", evaluation)):
        members = [
            (row, place, *answer) for row, group in enumerate(groups) for place, answer in enumerate(group)
        ]
        if not members:
            continue
        rows, places, ids, starts, is_positive = zip(*members, strict=True)
        lengths = np.array([len(one) for one in ids])
        writer = ShardWriter(folder / f"{split}-00000.arrow")
        writer.write(
            ragged(np.concatenate(ids), lengths),
            ragged(np.stack([starts, lengths], axis=1).reshape(-1), np.full(len(ids), 2)),
            0,
            np.array(rows) + 1,
            positions=np.array(places),
            is_positive=np.array(is_positive),
        )
        writer.close()
        shards.append(
            {
                "name": f"{split}-00000.arrow",
                "split": split,
                "first_row": 0,
                "files": ["rows.jsonl"],
                "datasets": [],
            }
        )
    manifest = {"fingerprint": "made", "template": None, "shards": shards, "report": {}}
    Store(str(folder)).write_json(MANIFEST, manifest)
    return TokenStore.open(str(folder))
