"""Tasks at given context lengths: perplexity of long texts, passkey retrieval, needle in a haystack."""

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
"""Text that is repeated around the passkey."""
EFFECTIVE = 0.856
"""RULER's threshold of an effective length."""


class LongTask(EvaluationTask):
    """Keys of all tasks at given lengths. Lengths beyond the model's own context length are evaluated too."""

    rules: ClassVar[str | None] = "tailor.spec.rules.tasks.lengths"

    lengths: list[int] = Field(min_length=1)
    """Context lengths, in tokens, with special tokens. Each is evaluated separately."""

    prefill: int | None = Field(None, ge=1)
    """Chunked prefill: read a text N tokens at a time with a KV cache. Needs less memory and gives the same metrics.
    Default: the whole text at once.
    """

    def within(self, length: int) -> bool:
        return min(self.lengths) <= length


class LongPerplexity(LongTask):
    """Perplexity of long texts at each length, averaged over tokens. All lengths score the same tokens.

    A window of this length moves over each text; each token is scored once, in the first window that has it. Every
    window starts with the tokens that the tokenizer puts before a text (BOS), which count in its length. Texts
    shorter than the largest length are left out and counted.
    """

    definition: ClassVar[int] = 2

    implementation: ClassVar[str] = "tailor.evaluate.tasks.long_perplexity:LongPerplexityEvaluator"
    fields: ClassVar[tuple[str, ...] | None] = ("text",)

    name: Literal["long_perplexity"]
    """Metrics: `perplexity_N` for each length N. Also makes a plot of the loss by position in the largest window."""

    data: Texts
    """Rows with the field `text`."""

    stride: int | None = Field(None, ge=1)
    """Step of the sliding window: number of new tokens in each window after the first. Default: half of the length. A
    smaller stride gives each token more context and takes longer.
    """

    tokens_per_text: int | None = Field(None, ge=2)
    """Use only the first N tokens of each text. Default: all."""

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"perplexity_{length}" for length in _lengths(task))


class Grid(LongTask):
    """Keys of tasks that hide values at each depth in texts of each length.

    Prompts are built from token ids, so that each has exactly its length, and each needle is exactly at its depth.
    """

    greedy: ClassVar[bool] = True

    depths: list[float] = Field([0.0, 0.25, 0.5, 0.75, 1.0], min_length=1)
    """Positions of the needle, as a share of the text: 0 is the start, 1 is right before the question."""

    samples: int = Field(5, ge=1)
    """Prompts per length and depth."""

    threshold: float = Field(EFFECTIVE, gt=0, le=1)
    """Score of an effective length: the results name the longest of the lengths whose score is at least this. The
    default is RULER's, the score of Llama 2 7B at 4K (arXiv 2404.06654).
    """

    digits: int = Field(5, ge=1, le=18)
    """Digits of a hidden value."""

    seed: int = Field(0, ge=0)
    """Seed of the hidden values, and of where in the haystack each prompt starts."""

    @classmethod
    def metrics(cls, task: Mapping[str, Any]) -> tuple[str, ...]:
        return (task["name"], *(f"{task['name']}_{length}" for length in _lengths(task)))


class SingleNeedle(Grid):
    """Keys of tasks that hide one value."""

    needle: str = Field("\nThe pass key is {value}. Remember it: {value} is the pass key.\n", min_length=1)
    """The sentence with the hidden value. It must contain `{value}`."""

    question: str = Field("\nWhat is the pass key? The pass key is", min_length=1)
    """The end of the prompt. With a chat template it ends the user's turn."""


class Passkey(SingleNeedle):
    """Passkey retrieval: the value is hidden in a few sentences that are repeated (arXiv 2305.16300)."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.passkey:PasskeyEvaluator"

    name: Literal["passkey"]
    """Metrics: `passkey`, the share of answers whose first number is the hidden value, and `passkey_N` for each
    length N.
    """

    filler: str = Field(FILLER, min_length=1)
    """The sentences that are repeated."""


class Needle(SingleNeedle):
    """Needle in a haystack: the value is hidden in your own texts."""

    implementation: ClassVar[str] = "tailor.evaluate.tasks.needle:NeedleEvaluator"
    fields: ClassVar[tuple[str, ...] | None] = ("text",)

    name: Literal["needle"]
    """Metrics: `needle`, the share of answers whose first number is the hidden value, and `needle_N` for each length
    N.
    """

    data: Texts
    """Rows with the field `text`. The texts are joined into the haystack."""


def _lengths(task: Mapping[str, Any]) -> list[int]:
    """The lengths in order, without duplicates. The plain values may be invalid; then the list is empty."""
    lengths = task.get("lengths")
    return sorted({one for one in lengths if type(one) is int}) if isinstance(lengths, list) else []
