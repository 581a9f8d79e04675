"""Packing: several groups of examples share a row of at most `max_length` tokens."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from tailor.data.rows import Row

_ROWS = 1 << 40
"""More than the rows of a call."""


def pack(examples: np.ndarray, lengths: np.ndarray, capacity: int) -> list[Row]:
    """Best-fit-decreasing bin packing: take the longest example first, and put each into the fullest row with enough room.

    examples: int[k] indices; lengths: int[n]. Returns rows of at most `capacity` tokens. An example that is longer,
    as a pair may be, gets a row of its own.
    """
    order = examples[np.argsort(-lengths[examples], kind="stable")]
    rows: list[list[int]] = []
    room: list[int] = []  # free tokens * _ROWS + row, sorted: tuples take twice the time to compare
    for example, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        best = bisect_left(room, length * _ROWS)
        if best == len(room):
            place = capacity * _ROWS + len(rows)
            rows.append([])
        else:
            place = room.pop(best)
        rows[place % _ROWS].append(example)
        insort(room, place - length * _ROWS)
    return [tuple(row) for row in rows]


def in_order(examples: np.ndarray, lengths: np.ndarray, capacity: int) -> list[Row]:
    """Next-fit packing, which keeps the order: an example that does not fit into the last row starts a new one.

    examples: int[k] indices; lengths: int[n]. Rows are as in `pack`, but less full.
    """
    rows: list[Row] = []
    row: list[int] = []
    free = capacity
    for example, length in zip(examples.tolist(), lengths[examples].tolist(), strict=True):
        if row and length > free:
            rows.append(tuple(row))
            row, free = [], capacity
        row.append(example)
        free -= length
    return [*rows, tuple(row)] if row else rows


def largest_sum(sizes: np.ndarray, copies: np.ndarray, limit: int) -> int:
    """The largest sum of some of the sizes that is at most `limit`: no packed row of these groups can have more tokens.

    sizes: int[n]; copies: int[n], how often each may be used.
    """
    different, index = np.unique(sizes, return_inverse=True)
    counts = np.bincount(index, weights=copies).astype(np.int64) if len(sizes) else sizes
    possible, within = 1, (1 << (limit + 1)) - 1  # bit n: a sum of n tokens is possible
    for size, count in zip(different.tolist(), counts.tolist(), strict=True):
        left = min(count, limit // size) if 0 < size <= limit else 0
        part = 1
        while left:  # 1, 2, 4 … copies at a time: every number of copies up to `count` is a sum of these
            part = min(part, left)
            possible = (possible | possible << (size * part)) & within
            left, part = left - part, part * 2
        if possible >> limit:
            break
    return possible.bit_length() - 1
