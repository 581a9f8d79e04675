"""Evaluations at given lengths: perplexity, and a value to find in a long text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from tailor.spec.base import Section

FILLER = (
    "The kettle is on the stove. The street is quiet this morning. A cart goes by, and then another one. "
    "Nobody is in a hurry. The clock on the wall is right. "
)
"""What a passkey is hidden in, over and over."""


class Texts(Section):
    """Rows with a text: JSONL, JSON, Parquet, CSV, plain text or a Hugging Face dataset."""

    path: str = Field(min_length=1)
    """A file, a folder, a glob, any fsspec URL (`s3://…`), or `hf://owner/dataset` for a Hugging Face dataset."""

    columns: dict[str, str] = {}
    """Where the text stands in these rows, as `text: column`."""

    subset: str | None = Field(None, min_length=1)
    """Configuration name of a Hugging Face dataset."""

    split: str = Field("train", min_length=1)
    """Split of a Hugging Face dataset."""

    limit: int | None = Field(None, ge=1)
    """Read only this many rows, from the start."""


class LongTask(Section):
    """What tasks at given lengths have. A model with rotary positions is measured beyond its own length too."""

    lengths: list[int] = Field(min_length=1)
    """Tokens that the model sees at once, special tokens and all."""

    prefill: int | None = Field(None, ge=1)
    """Read a text in parts of so many tokens, with a cache of those before: less memory, the same figures."""


class LongPerplexity(LongTask):
    """Perplexity of long texts at each length, weighted by token, over the same tokens at every length.

    A window slides over each text; every token is scored once, in the first window that holds it. Texts shorter than
    the longest length are left out and counted.
    """

    name: Literal["long_perplexity"]
    """Gives `perplexity_N` for each length N, and a plot of the loss by a token's position in the longest window."""

    data: Texts
    """Rows with `text`."""

    stride: int | None = Field(None, ge=1)
    """New tokens of each window after the first. Default: half of its length."""

    tokens_per_text: int | None = Field(None, ge=2)
    """Read only so many tokens of each text."""


class Grid(LongTask):
    """A value to find, hidden at each depth in texts of each length.

    Built from token ids, so that a prompt has exactly its length and the hiding sentence lies exactly at its depth.
    """

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


class Passkey(Grid):
    """The value hidden in a few sentences that are repeated (Mohtashami and Jaggi, arXiv 2305.16300)."""

    name: Literal["passkey"]
    """Gives `passkey`, the share of values that the answer's first number is, and `passkey_N` for each length N."""

    filler: str = Field(FILLER, min_length=1)
    """The sentences."""


class Needle(Grid):
    """The value hidden in texts of one's own (needle in a haystack)."""

    name: Literal["needle"]
    """Gives `needle`, the share of values that the answer's first number is, and `needle_N` for each length N."""

    data: Texts
    """Rows with `text`, joined into the haystack."""


GRIDS = ("passkey", "needle")


def figures(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures of one of these tasks, from its plain values."""
    lengths = task.get("lengths")
    by_length = sorted(set(lengths)) if isinstance(lengths, list) and all(map(_whole, lengths)) else []
    if task["name"] == "long_perplexity":
        return tuple(f"perplexity_{length}" for length in by_length)
    return (task["name"], *(f"{task['name']}_{length}" for length in by_length))


def _whole(value: Any) -> bool:
    return isinstance(value, int)
