"""Mixing of sources: which groups an epoch draws from each source, by the weights of the sources."""

from __future__ import annotations

import math

import numpy as np

from tailor.errors import DataError
from tailor.plan.batches import BatchSpec

MAX_DRAWN = 10**8
"""Largest number of groups that an epoch may draw from one source because of its weight: their order is kept in memory."""


def passes(sources: np.ndarray, sizes: np.ndarray, spec: BatchSpec) -> list[float]:
    """How often an epoch shows the groups of each source, as a float.

    sources: int[groups] source of each group; sizes: int[groups] tokens of each group. By rows, a weight is this number. By
    tokens, the weights are shares of an epoch that has as many tokens as all sources together; a source without groups
    has no share.
    """
    if spec.weight_by == "rows":
        return list(spec.weights)
    weights = np.array(spec.weights)  # [sources]
    owned = np.bincount(sources, weights=sizes, minlength=len(weights))  # [sources] tokens of one pass
    shares = np.where(owned > 0, weights, 0.0)
    # Sums of the largest floats would be infinite. A power of two changes no digit of the others.
    shares = np.ldexp(shares, -np.frexp(shares.max())[1])
    wanted = owned.sum() * shares / (shares.sum() or 1.0)
    return [float(part) for part in wanted / np.maximum(owned, 1)]


def max_copies(sources: np.ndarray, sizes: np.ndarray, spec: BatchSpec) -> np.ndarray:
    """int[groups]: how often an epoch has each group at most."""
    if not spec.weights:
        return np.ones(len(sources), np.int64)
    most = [max(1, math.ceil(round(number, 9))) for number in passes(sources, sizes, spec)]
    return np.array(most, np.int64)[sources]


def draw(
    sources: np.ndarray, sizes: np.ndarray, spec: BatchSpec, generator: np.random.Generator
) -> np.ndarray:
    """int[k]: the groups of an epoch. A source with 2.5 passes appears twice, and a random half of it a third time.

    The half is counted in groups or in tokens, as `spec.weight_by` says. At least one group of each source is drawn:
    0.1 passes of three groups would otherwise be rounded to none. Of a source with `samples`, this many random groups are
    drawn. DataError for a weight with which an epoch is too large to be kept in memory.
    """
    if not (spec.weights or spec.samples):
        return np.arange(len(sources))
    drawn = [np.zeros(0, dtype=np.int64)]
    for source, number in enumerate(passes(sources, sizes, spec) or [1.0] * len(spec.samples)):
        members = np.flatnonzero(sources == source)
        if spec.samples and (samples := spec.samples[source]):
            drawn.append(generator.choice(members, size=min(samples, len(members)), replace=False))
            continue
        if number > 1 and number * len(members) > MAX_DRAWN:
            raise too_many(source, number, len(members))
        whole = int(number)
        drawn.append(np.tile(members, whole))
        if spec.weight_by == "rows":
            extra = round((number - whole) * len(members))
            if number < 1 and len(members):
                extra = max(1, extra)
            if extra:
                drawn.append(generator.choice(members, size=extra, replace=False))
        elif len(members):
            shuffled = generator.permutation(members)
            wanted = (number - whole) * sizes[members].sum()
            drawn.append(shuffled[: max(0 if whole else 1, nearest(sizes[shuffled], wanted))])
    return np.concatenate(drawn)


def nearest(sizes: np.ndarray, tokens: float) -> int:
    """How many of the first groups have, together, most nearly this number of tokens."""
    totals = np.concatenate([[0], np.cumsum(sizes)])
    return int(np.argmin(np.abs(totals - tokens)))


def too_many(source: int, number: float, groups: int, limit: int = MAX_DRAWN) -> DataError:
    """The error for a weight with which an epoch is too large to be kept in memory."""
    return DataError(
        f"data.train[{source}].weight: an epoch would show its {groups:,} rows {number:.6g} times, over the limit of "
        f"{limit:,} rows",
        hint="lower the weight, and raise train.epochs instead",
    )
