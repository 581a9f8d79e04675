"""The length of a loaded model's context."""

from __future__ import annotations

from typing import Any

from tailor.models.beacon.modules import beacons_of
from tailor.models.causal import base_of
from tailor.plan import beacon, rope


def positions_of(model: Any) -> int | None:
    """The maximum number of tokens, prompt and answer together; None when the model's configuration has no limit.

    model: a transformers model, or PEFT's wrapper of one.
    """
    limit = rope.positions(model.config.get_text_config().to_dict())
    beacons = beacons_of(base_of(model))
    if limit is None or beacons is None or beacons.off:
        return limit
    return beacon.context(beacons.spec, limit)
