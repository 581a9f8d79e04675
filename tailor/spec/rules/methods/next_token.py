"""Rules of the methods whose loss is next-token cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Conflict, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Settings under which embedded tokens cannot get noise."""
    if not keys("method.neftune_alpha"):
        return
    for key, why in (
        ("train.compile", "a compiled model would keep the noise in evaluations; remove one of them"),
        ("model.beacon", "windows with beacons get no noise; remove one of them"),
    ):
        if keys(key) not in (None, False):
            yield "method.neftune_alpha", key, why
