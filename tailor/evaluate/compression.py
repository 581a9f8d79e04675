"""The compression ratios that a model with beacons took in an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tailor.evaluate.batches import EvaluationBatch
from tailor.plan import beacon
from tailor.spec.model import Beacon
from tailor.spec.suite import Decoding


def taken(
    spec: Beacon, limit: int | None, batches: Iterable[EvaluationBatch], decoding: Decoding
) -> list[dict[str, Any]]:
    """For each ratio: how many `sequences` were read with it, and the tokens of the `longest` one.

    The ratio is None for sequences within one window, which are not compressed. limit: the model's maximum positions.
    """
    found: dict[int | None, list[int]] = {}
    for batch in batches:
        sizes = batch.computation.sizes
        for tokens, new in sizes(batch.inputs, decoding) if sizes is not None else ():
            ratio = None
            if tokens + new > spec.window:
                now, later = (beacon.windows_of(length, spec.window) for length in (tokens, tokens + new))
                ratio = beacon.adapted(spec, now, limit, at_most=later)
            found.setdefault(ratio, []).append(tokens)
    return [
        {"ratio": ratio, "sequences": len(lengths), "longest": max(lengths)}
        for ratio, lengths in sorted(found.items(), key=lambda item: max(item[1]))
    ]
