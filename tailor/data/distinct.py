"""Batches whose rows have no text in common, for in-batch negatives.

A negative with the text of a query's positive teaches the opposite of what is meant. (sentence-transformers does the same
with `BatchSamplers.NO_DUPLICATES`.)
"""

from __future__ import annotations

import numpy as np


def distinct_parts(texts: np.ndarray, size: int) -> list[np.ndarray]:
    """Split rows into parts of at most `size` rows, such that no two rows of a part have a text in common.

    texts: uint64[n, k], the hashes of the texts of each row. Returns the indices of the rows of each part. There are as few
    parts as possible of nearly equal size, or as many as the most frequent text has rows; more only if rows that share
    several texts fit nowhere else. Every row is in exactly one part. Without a shared text, the rows stay in order.

    Rows with the most frequent texts come first, and each goes to the first part that has room and is after all parts with
    one of its texts. So a text never looks at a part twice: the time is that of sorting n · k numbers.
    """
    if not len(texts):
        return []
    _, text, counts = np.unique(texts, return_inverse=True, return_counts=True)
    text = text.reshape(texts.shape)  # int[n, k], a number for each text
    own = np.sort(text, axis=1)
    repeated = np.zeros(len(counts), np.int64)  # how often a text is repeated within its rows
    np.add.at(repeated, own[:, 1:][own[:, 1:] == own[:, :-1]], 1)
    rows_of = counts - repeated  # int[texts], the rows that have the text
    parts = max(-(-len(texts) // size), int(rows_of.max()))
    room = [len(texts) // parts + (part < len(texts) % parts) for part in range(parts)]
    later = list(range(parts + 1))  # for each part, a part from it on that may have room (union-find)
    after = np.zeros(len(counts), np.int64)  # for each text, the first part after those that have it
    found: list[list[int]] = [[] for _ in range(parts)]
    for row in np.argsort(-rows_of[text].max(axis=1), kind="stable"):
        part = _with_room(later, int(after[text[row]].max()))
        if part == len(found):  # rows with several shared texts: a part beyond the expected number
            found.append([])
            room.append(size)
            later.append(len(found))
        found[part].append(int(row))
        after[text[row]] = part + 1
        room[part] -= 1
        if not room[part]:
            later[part] = part + 1
    return [np.array(rows, np.int64) for rows in found if rows]


def _with_room(later: list[int], part: int) -> int:
    """The first part from `part` on that has room. Shortens the path that it follows."""
    first = part
    while later[part] != part:
        part = later[part]
    while later[first] != part and first != part:
        later[first], first = part, later[first]
    return part


def text_hashes(ids: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """uint64[n]: a hash of the tokens [start, stop) of each text, of their order too. ids: int[tokens].

    It is a sum over the tokens of splitmix64 (Steele et al. 2014) of token and position, which takes no loop over texts.
    Two texts with equal hashes are only kept apart, so a collision (1 in 10^5 for 10^7 texts) does no harm.
    """
    lengths = stops - starts
    ends = np.cumsum(lengths)
    position = np.arange(int(lengths.sum()), dtype=np.uint64) - np.repeat(ends - lengths, lengths).astype(
        np.uint64
    )
    tokens = ids[position.astype(np.int64) + np.repeat(starts, lengths)].astype(
        np.uint64
    )  # [tokens of the texts]
    mixed = tokens + (position + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    total = np.concatenate([[np.uint64(0)], np.cumsum(mixed ^ (mixed >> np.uint64(31)))])  # modulo 2^64
    return total[ends] - total[ends - lengths]
