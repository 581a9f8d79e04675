"""Tasks at given lengths: perplexity of long texts, and a value to find in a long text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.tasks.base import EvaluationTask
from tailor.spec.tasks.rows import Texts

FILLER = (
    "The kettle is on the stove. The street is quiet this morning. A cart goes by, and then another one. "
    "Nobody is in a hurry. The clock on the wall is right. "
)
"""What a passkey is hidden in, over and over."""


class LongTask(EvaluationTask):
    """What tasks at given lengths have. A model with rotary positions is measured beyond its own length too."""

    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.lengths"

    lengths: list[int] = Field(min_length=1)
    """Tokens that the model sees at once, special tokens and all."""

    prefill: int | None = Field(None, ge=1)
    """Read a text in parts of so many tokens, with a cache of those before: less memory, the same figures."""


class LongPerplexity(LongTask):
    """Perplexity of long texts at each length, weighted by token, over the same tokens at every length.

    A window slides over each text; every token is scored once, in the first window that holds it. Texts shorter than
    the longest length are left out and counted.
    """

    implementation: ClassVar[str] = "tailor.evaluate.tasks.long_perplexity:LongPerplexityEvaluator"
    fields: ClassVar[tuple[str, ...] | None] = ("text",)

    name: Literal["long_perplexity"]
    """Gives `perplexity_N` for each length N, and a plot of the loss by a token's position in the longest window."""

    data: Texts
    """Rows with `text`."""

    stride: int | None = Field(None, ge=1)
    """New tokens of each window after the first. Default: half of its length."""

    tokens_per_text: int | None = Field(None, ge=2)
    """Read only so many tokens of each text."""

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"perplexity_{length}" for length in _lengths(task))


class Grid(LongTask):
    """A value to find, hidden at each depth in texts of each length.

    Built from token ids, so that a prompt has exactly its length and the hiding sentence lies exactly at its depth.
    """

    greedy: ClassVar[bool] = True

    depths: list[float] = Field([0.0, 0.25, 0.5, 0.75, 1.0], min_length=1)
    """Share of the text before the hidden sentence: 0 is the start, 1 right before the question."""

    samples: int = Field(5, ge=1)
    """Prompts of each length and depth."""

    digits: int = Field(5, ge=1, le=18)
    """Digits of the value."""

    needle: str = Field("\nThe pass key is {value}. Remember it: {value} is the pass key.\n", min_length=1)
    """The sentence that hides the value, where `{value}` stands."""

    question: str = Field("\nWhat is the pass key? The pass key is", min_length=1)
    """The end of the prompt. With a chat template it ends the user's turn."""

    seed: int = Field(0, ge=0)
    """Decides the values, and where in the haystack a text begins."""

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        return (task["name"], *(f"{task['name']}_{length}" for length in _lengths(task)))


class Passkey(Grid):
    """The value hidden in a few sentences that are repeated (Mohtashami and Jaggi, arXiv 2305.16300)."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.passkey:PasskeyEvaluator"

    name: Literal["passkey"]
    """Gives `passkey`, the share of values that the answer's first number is, and `passkey_N` for each length N."""

    filler: str = Field(FILLER, min_length=1)
    """The sentences."""


class Needle(Grid):
    """The value hidden in texts of one's own (needle in a haystack)."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.needle:NeedleEvaluator"
    fields: ClassVar[tuple[str, ...] | None] = ("text",)

    name: Literal["needle"]
    """Gives `needle`, the share of values that the answer's first number is, and `needle_N` for each length N."""

    data: Texts
    """Rows with `text`, joined into the haystack."""


def _lengths(task: Mapping[str, Any]) -> list[int]:
    """The lengths in order, from plain values that may be wrong."""
    lengths = task.get("lengths")
    return sorted({one for one in lengths if type(one) is int}) if isinstance(lengths, list) else []
