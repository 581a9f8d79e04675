"""The evaluation task `variable_tracking`: a chain of assignments, of which all variables are asked for."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from tailor.evaluate.tasks.grid import Hiding, Needle, numbers
from tailor.evaluate.tasks.haystack import HaystackEvaluator
from tailor.spec.tasks.needles import VariableTracking

LETTERS = 5
"""Letters of a variable's name, as in RULER."""


class VariableTrackingEvaluator(HaystackEvaluator[VariableTracking]):
    def hide(self, depth: int, draw: random.Random) -> Hiding:
        """A chain that starts at its depth, and chains of other values at random depths, each in its order."""
        task, start = self.spec, self.depths[depth]
        size = task.hops + 1
        names = _names(size * task.chains, draw)
        values = numbers(task.chains, task.digits, draw)
        ends = [start + (1 - start) * at / task.hops for at in range(size)]
        needles = [
            Needle(text, at, name, start)
            for text, at, name in zip(_chain(names[:size], values[0]), ends, names[:size], strict=True)
        ]
        for chain in range(1, task.chains):
            own = names[chain * size : (chain + 1) * size]
            depths = sorted(draw.random() for _ in own)
            needles += [
                Needle(text, at, None, at)
                for text, at in zip(_chain(own, values[chain]), depths, strict=True)
            ]
        question = task.question.replace("{value}", values[0]).replace("{count}", str(size))
        return Hiding(needles, question)


def _names(count: int, draw: random.Random) -> list[str]:
    """Different random names of variables."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(string.ascii_uppercase, k=LETTERS))] = None
    return list(found)


def _chain(names: Sequence[str], value: str) -> list[str]:
    """The assignments of a chain: the value to the first variable, and each variable to the next one."""
    sources = [value, *(f"VAR {name}" for name in names)]
    return [f"\nVAR {name} = {source}\n" for name, source in zip(names, sources, strict=False)]
