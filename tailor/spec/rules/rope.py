"""The rules of `model.rope`, as far as a recipe alone shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tailor.spec.data import Data
from tailor.spec.rules.keys import Finding, Keys

PROPORTIONAL = ("linear", "dynamic", "yarn")
"""Kinds whose factor is the length divided by the original one."""


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Two keys that do not go together, and why."""
    rope = _Rope(keys)
    if rope.name is None:
        return
    factor, original, whole = rope("factor"), rope("original_length"), rope("length")
    if rope.name in PROPORTIONAL and factor and original and whole and abs(factor * original - whole) >= 1:
        yield (
            "model.rope.factor",
            "model.rope.length",
            f"{factor:g} times the original length of {original} is {factor * original:g}, not {whole}",
        )
    if rope.name in ("llama3", "longrope") and original and whole and whole <= original:
        yield "model.rope.length", "model.rope.original_length", f"{whole} tokens are no more than {original}"
    for fast, slow in (("beta_fast", "beta_slow"), ("high_freq_factor", "low_freq_factor")):
        high, low = rope(fast), rope(slow)
        if high is not None and low is not None and high <= low:
            yield f"model.rope.{fast}", f"model.rope.{slow}", f"{fast} {high:g} must be over {slow} {low:g}"
    short, long = rope("short_factor"), rope("long_factor")
    if isinstance(short, list) and isinstance(long, list) and len(short) != len(long):
        yield (
            "model.rope.short_factor",
            "model.rope.long_factor",
            f"{len(short)} and {len(long)} numbers; both need one number per frequency",
        )
    asked, most = rope.max_length, rope.longest
    if asked is not None and most is not None and asked > most:
        yield "data.max_length", "model.rope", f"examples of {asked} tokens do not fit into its {most:g}"


def findings(keys: Keys) -> Iterator[Finding]:
    """What follows each sequence's own length cannot share a forward pass with sequences of other lengths."""
    rope = _Rope(keys)
    if not rope.follows_length:
        return
    why = f"{rope.name} takes its frequencies from the longest document of a forward pass"
    method = keys.method
    if method is not None and method.documents_per_pass is not None:
        several = f"method {method.name} {method.documents_per_pass}"
        yield "model.rope", f"{why}, and {several}; choose another kind"
        return
    joins = method is not None and method.joins
    packs = not joins and keys("data.pack") is not False and not keys.is_wrong("data.pack")
    together = keys("train.micro_batch_size") != 1 and not keys.is_wrong("train.micro_batch_size")
    wanted = ["data.pack: false"] * packs + ["train.micro_batch_size: 1"] * together
    if wanted:
        yield "model.rope", f"{why}, so examples would change each other; set {' and '.join(wanted)}"
    if keys("train.compile"):
        yield "train.compile", f"pads all rows to one length, but {why}; leave it out"


class _Rope:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.name: Any = keys("model.rope.name")

    def __call__(self, key: str) -> Any:
        return self._keys(f"model.rope.{key}")

    @property
    def max_length(self) -> Any:
        """Of examples; None where it is wrong."""
        if self._keys.is_wrong("data.max_length"):
            return None
        return self._keys("data.max_length") or Data.model_fields["max_length"].default

    @property
    def longest(self) -> Any:
        """Tokens that the model is for; None where that is not known."""
        if self("length") is not None or self.name not in PROPORTIONAL:
            return self("length")
        factor, original = self("factor"), self("original_length")
        return factor * original if factor and original else None

    @property
    def follows_length(self) -> bool:
        """Whether a sequence's frequencies depend on the others of its forward pass."""
        original, longest = self("original_length"), self.max_length
        beyond = original is not None and longest is not None and longest > original
        return self.name == "dynamic" or (self.name == "longrope" and beyond)
