"""The evaluation tasks `needle_multi_key`, `needle_multi_value` and `needle_multi_query`: needles with a key and a value."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from tailor.evaluate.tasks.grid import Hiding, Needle, numbers
from tailor.evaluate.tasks.haystack import HaystackEvaluator
from tailor.spec.tasks.needles import KeyedNeedles, NeedleMultiKey, NeedleMultiQuery, NeedleMultiValue

S = TypeVar("S", bound=KeyedNeedles)
ADJECTIVES = """amber brave calm dusty eager faint gentle hollow idle jolly keen lively mellow narrow oblong patient
quiet rustic silent tidy upper velvet wooden yearly"""
NOUNS = """anchor basket candle dolphin engine feather garden hammer island jacket kettle ladder meadow needle orchard
pebble quarry ribbon saddle timber umbrella village willow yarn"""
KEYS = [f"{adjective}-{noun}" for adjective in ADJECTIVES.split() for noun in NOUNS.split()]
"""Keys of the needles, as RULER makes them: an adjective and a noun."""


class KeyedNeedlesEvaluator(HaystackEvaluator[S]):
    """Hides sentences with a key and a value."""

    def needle(self, key: str, value: str, depth: float, *, cell: float | None) -> Needle:
        """cell: the depth for which the value counts; None for a distractor."""
        text = self.spec.needle.replace("{key}", key).replace("{value}", value)
        return Needle(text, depth, None if cell is None else value, depth if cell is None else cell)

    def asking(self, needles: Sequence[Needle], keys: Sequence[str]) -> Hiding:
        named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
        return Hiding(needles, self.spec.question.replace("{keys}", named))

    def spread(self, count: int, first: int) -> list[float]:
        """`count` depths of the grid from index `first`, in turn and as different as possible."""
        depths = self.depths
        step = max(1, len(depths) // count)
        return [depths[(first + at * step) % len(depths)] for at in range(count)]


class MultiKeyEvaluator(KeyedNeedlesEvaluator[NeedleMultiKey]):
    def hide(self, depth: int, draw: random.Random) -> Hiding:
        """One key at its depth, which is asked for, and distractors at random depths."""
        keys, values = draw.sample(KEYS, self.spec.keys), numbers(self.spec.keys, self.spec.digits, draw)
        at = self.depths[depth]
        needles = [self.needle(keys[0], values[0], at, cell=at)]
        for key, value in zip(keys[1:], values[1:], strict=True):
            needles.append(self.needle(key, value, draw.random(), cell=None))
        return self.asking(needles, keys[:1])


class MultiValueEvaluator(KeyedNeedlesEvaluator[NeedleMultiValue]):
    def hide(self, depth: int, draw: random.Random) -> Hiding:
        """Values of one key."""
        key = draw.choice(KEYS)
        pairs = zip(
            numbers(self.spec.values, self.spec.digits, draw),
            self.spread(self.spec.values, depth),
            strict=True,
        )
        return self.asking([self.needle(key, value, at, cell=at) for value, at in pairs], [key])


class MultiQueryEvaluator(KeyedNeedlesEvaluator[NeedleMultiQuery]):
    def hide(self, depth: int, draw: random.Random) -> Hiding:
        """Keys with a value each, and all of them are asked for."""
        count = self.spec.queries
        keys = draw.sample(KEYS, count)
        triples = zip(keys, numbers(count, self.spec.digits, draw), self.spread(count, depth), strict=True)
        return self.asking([self.needle(key, value, at, cell=at) for key, value, at in triples], keys)
