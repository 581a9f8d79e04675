"""Rules of the methods whose loss is next-token cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Conflict, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Settings under which embedded tokens cannot get noise."""
    if keys("method.neftune_alpha") and keys("model.beacon") is not None:
        yield (
            "method.neftune_alpha",
            "model.beacon",
            "windows with beacons get no noise; remove one of them",
        )
