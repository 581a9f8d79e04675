"""Rules between `train.pose` and the rest of a recipe. Those that need the model are in the plan."""

from __future__ import annotations

from collections.abc import Iterator

from tailor.spec.data import Data
from tailor.spec.methods.registry import token_methods
from tailor.spec.rules.keys import Conflict, Keys
from tailor.spec.rules.rope import rope_length

KEY = "train.pose"


def conflicts(keys: Keys) -> Iterator[Conflict]:
    """Settings that do not work with skipped positions."""
    if keys(KEY) is None:
        return
    method = keys.method
    if method is not None and not method.token_loss:
        which = " or ".join(token_methods())
        yield KEY, "method.name", f"positions are skipped with a next-token loss only; use {which}"
    if keys("model.beacon") is not None:
        yield KEY, "model.beacon", "beacons have positions of their own; remove one of them"
    packs = not (method is not None and method.joins)
    packs = packs and keys("data.pack") is not False and not keys.is_wrong("data.pack")
    rows = "packed documents are distinguished by their position ids, which a skip would break; set data.pack: false"
    if packs and keys("model.attention") in ("sdpa", "eager"):
        yield KEY, "model.attention", f"with {keys('model.attention')}, {rows}"
    length, longest = keys(f"{KEY}.length"), rope_length(keys)
    if length is None:
        return
    max_length = keys("data.max_length") or Data.model_fields["max_length"].default
    if not keys.is_wrong("data.max_length") and length <= max_length:
        yield (
            f"{KEY}.length",
            "data.max_length",
            f"{length} positions are not more than rows of {max_length} tokens, so none could be skipped; change one of them",
        )
    if longest is not None and length > longest:
        yield (
            f"{KEY}.length",
            "model.rope",
            f"{length} positions exceed the RoPE length of {longest:g}; change one of them",
        )
