"""Rules of the losses of routers: `model.router_aux_loss` and `model.router_z_loss`."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Conflict, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Keys with which these losses are not computed."""
    for key in ("model.router_aux_loss", "model.router_z_loss"):
        if keys(key) and keys("model.beacon") is not None:
            why = "the windows of a document with beacons go through the model one after another, and these losses need all of it"
            yield key, "model.beacon", f"{why}; remove {key}"
