"""Rules of `model.rope` that need only the recipe. Those that need the model are in the plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tailor.spec.data import Data
from tailor.spec.rules.keys import Finding, Keys

PROPORTIONAL = ("linear", "dynamic", "yarn")
"""Types whose factor is the new length divided by the original length."""


def conflicts(keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Pairs of keys that cannot be used together."""
    rope = _Rope(keys)
    if rope.name is None:
        return
    factor, original, length = rope("factor"), rope("original_length"), rope("length")
    if rope.name in PROPORTIONAL and factor and original and length and abs(factor * original - length) >= 1:
        yield (
            "model.rope.factor",
            "model.rope.length",
            f"factor {factor:g} × original_length {original} is {factor * original:g}, not {length}; change one of them",
        )
    if rope.name in ("llama3", "longrope") and original and length and length <= original:
        yield (
            "model.rope.length",
            "model.rope.original_length",
            f"{length} tokens are not more than the original {original}; raise model.rope.length",
        )
    for fast, slow in (("beta_fast", "beta_slow"), ("high_freq_factor", "low_freq_factor")):
        high, low = rope(fast), rope(slow)
        if high is not None and low is not None and high <= low:
            yield (
                f"model.rope.{fast}",
                f"model.rope.{slow}",
                f"{fast} {high:g} must be larger than {slow} {low:g}; change one of them",
            )
    short, long = rope("short_factor"), rope("long_factor")
    if isinstance(short, list) and isinstance(long, list) and len(short) != len(long):
        yield (
            "model.rope.short_factor",
            "model.rope.long_factor",
            f"they have {len(short)} and {len(long)} numbers; both need one number per frequency",
        )
    needed, available = rope.max_length, rope.longest
    if needed is not None and available is not None and needed > available:
        yield (
            "data.max_length",
            "model.rope",
            f"examples of {needed} tokens exceed the RoPE length of {available:g}; change one of them",
        )


def findings(keys: Keys) -> Iterator[Finding]:
    """RoPE types whose frequencies depend on the sequence length need one example per forward pass."""
    rope = _Rope(keys)
    if not rope.follows_length:
        return
    why = f"with {rope.name}, the RoPE frequencies depend on the longest document of a forward pass"
    method = keys.method
    if method is not None and method.documents_per_pass is not None:
        several = f"method {method.name} {method.documents_per_pass}"
        yield "model.rope", f"{why}, and {several}; use another rope type"
        return
    joins = method is not None and method.joins
    packs = not joins and keys("data.pack") is not False and not keys.is_wrong("data.pack")
    together = keys("train.micro_batch_size") != 1 and not keys.is_wrong("train.micro_batch_size")
    needed = ["data.pack: false"] * packs + ["train.micro_batch_size: 1"] * together
    if needed:
        yield "model.rope", f"{why}, so examples would affect each other; set {' and '.join(needed)}"


def rope_length(keys: Keys) -> float | None:
    """Longest sequence of the model with `model.rope`, in tokens. None if not known."""
    longest: float | None = _Rope(keys).longest
    return longest


class _Rope:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.name: Any = keys("model.rope.name")

    def __call__(self, key: str) -> Any:
        return self._keys(f"model.rope.{key}")

    @property
    def max_length(self) -> Any:
        """Longest example, in tokens. None if `data.max_length` is wrong."""
        if self._keys.is_wrong("data.max_length"):
            return None
        return self._keys("data.max_length") or Data.model_fields["max_length"].default

    @property
    def longest(self) -> Any:
        """Longest sequence of the model after training, in tokens. None if not known."""
        if self("length") is not None or self.name not in PROPORTIONAL:
            return self("length")
        factor, original = self("factor"), self("original_length")
        return factor * original if factor and original else None

    @property
    def follows_length(self) -> bool:
        """Whether a sequence's frequencies depend on the other sequences of its forward pass."""
        original, longest = self("original_length"), self.max_length
        if self._keys("train.pose") is not None:  # the positions that it covers
            longest = self._keys("train.pose.length") or self.longest
        beyond = original is not None and longest is not None and longest > original
        return self.name == "dynamic" or (self.name == "longrope" and beyond)
