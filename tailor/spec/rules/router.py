"""Rules of the losses of routers: `model.router_aux_loss` and `model.router_z_loss`."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.rules.keys import Conflict, Keys


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Keys with which these losses are not computed."""
    method = keys.method
    for key in ("model.router_aux_loss", "model.router_z_loss"):
        if not keys(key):
            continue
        if method is not None and (method.ranked_passages is not None or _only_embeds(keys)):
            why = f"{method.name} trains scores or embeddings of texts, for which the losses of routers are not computed"
            yield key, "method.name", f"{why}; remove {key}"
        if keys("model.beacon") is not None:
            yield key, "model.beacon", f"beacons are trained without the losses of routers; remove {key}"
        parts = keys("scale.sequence_parallel")
        if isinstance(parts, int) and parts > 1:
            why = "the losses of routers are products of means over the whole document, which is split over workers"
            yield key, "scale.sequence_parallel", f"{why}; set sequence_parallel: 1, or remove {key}"


def _only_embeds(keys: Keys) -> bool:
    embedding = keys.method.embedding if keys.method is not None else None
    return embedding is not None and not embedding.generates
