"""Made-up English rows that are all different: for tests that plant faults among clean rows."""

from __future__ import annotations

import random
from typing import Any

_NOUNS = """
tailor thread needle collar sleeve button pocket jacket lining buttonhole shirt cuff seam pattern cloth wool linen silk
cotton velvet hem pleat waist shoulder stitch machine iron table lamp window drawer mirror chalk ruler scissors order
customer invoice parcel market harbor bridge garden kitchen letter clock engine river mountain village teacher
"""
_VERBS = """
cuts folds presses measures sews repairs finds sells carries paints cleans opens closes draws lifts turns holds marks
counts ships packs hides washes dries
"""
_ADJECTIVES = """
old narrow heavy bright quiet broken green warm cheap careful early late soft rough simple strange northern plain double
"""
_WHEN = ("before winter", "after lunch", "on Monday", "at night", "in spring", "for years", "by noon")


def sentence(draw: random.Random) -> str:
    """A sentence of about 20 words."""
    adjectives, nouns = draw.sample(_ADJECTIVES.split(), 4), draw.sample(_NOUNS.split(), 5)
    verbs = draw.sample(_VERBS.split(), 2)
    return (
        f"The {adjectives[0]} {nouns[0]} {verbs[0]} the {adjectives[1]} {nouns[1]} of a {nouns[2]} {draw.choice(_WHEN)}, "
        f"and it {verbs[1]} this {adjectives[2]} {nouns[3]} with the {adjectives[3]} {nouns[4]}."
    )


def chat(question: str, answer: str, **marks: Any) -> dict[str, Any]:
    """A row of one question and its answer."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **marks},
        ]
    }


def clean_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations without faults."""
    draw = random.Random(seed)
    return [
        chat(f"Is this true? {sentence(draw)}", f"Yes. {sentence(draw)} {sentence(draw)}")
        for _ in range(count)
    ]
