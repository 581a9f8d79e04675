"""`model.rope`: rotary positions made for other lengths than the base's. One class per kind, told apart by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section


class RopeSection(Section):
    """What all kinds have."""

    theta: float | None = Field(None, gt=1)
    """Base of the frequencies. Default: the model's own."""


class ScaledRope(RopeSection):
    """What the kinds have that start from a length."""

    original_length: int = Field(ge=8)
    """Tokens that the base was made for before any scaling; compared with its config.json."""


class ThetaRope(RopeSection):
    """Another base of the frequencies, and nothing scaled (LongLLM-QLoRA's way)."""

    name: Literal["theta"]
    """The kind."""

    theta: float = Field(gt=1)
    """Base of the frequencies."""

    length: int = Field(ge=8)
    """Tokens that the model is for from now on (`max_position_embeddings`)."""


class LinearRope(ScaledRope):
    """Positions divided by a factor (position interpolation, arXiv 2306.15595)."""

    name: Literal["linear"]
    """The kind."""

    factor: float = Field(gt=1)
    """How many times the original length."""

    length: int | None = Field(None, ge=8)
    """Tokens that the model is for from now on. Default: factor × original_length."""


class DynamicRope(ScaledRope):
    """A base of the frequencies that grows with each sequence beyond the original length (dynamic NTK).

    A sequence of another length gets other frequencies, so rows go through the model one by one.
    """

    name: Literal["dynamic"]
    """The kind."""

    factor: float = Field(gt=1)
    """How many times the original length."""

    length: int | None = Field(None, ge=8)
    """Tokens that the model is for from now on. Default: factor × original_length."""


class YarnRope(ScaledRope):
    """Slow frequencies divided by a factor, fast ones kept, a ramp between them (YaRN, arXiv 2309.00071)."""

    name: Literal["yarn"]
    """The kind."""

    factor: float = Field(gt=1)
    """How many times the original length."""

    length: int | None = Field(None, ge=8)
    """Tokens that the model is for from now on. Default: factor × original_length."""

    attention_factor: float | None = Field(None, gt=0)
    """Multiplies queries and keys. Default: 0.1 × ln(factor) + 1."""

    beta_fast: float = Field(32.0, gt=0)
    """Frequencies that turn at least so often within the original length are kept."""

    beta_slow: float = Field(1.0, gt=0)
    """Frequencies that turn at most so often within it are divided by the factor."""


class Llama3Rope(ScaledRope):
    """Llama 3.1's: long wavelengths divided by a factor, short ones kept, a ramp between them."""

    name: Literal["llama3"]
    """The kind."""

    factor: float = Field(gt=1)
    """Divides the frequencies of long wavelengths. Llama 3.1 has 8 for sixteen times the length."""

    length: int = Field(ge=8)
    """Tokens that the model is for from now on (`max_position_embeddings`)."""

    low_freq_factor: float = Field(1.0, gt=0)
    """Wavelengths over original_length / low_freq_factor are long."""

    high_freq_factor: float = Field(4.0, gt=0)
    """Wavelengths under original_length / high_freq_factor are short."""


class LongRope(ScaledRope):
    """A factor for each frequency, one list for short and one for long sequences (LongRoPE, arXiv 2402.13753)."""

    name: Literal["longrope"]
    """The kind."""

    length: int = Field(ge=8)
    """Tokens that the model is for from now on (`max_position_embeddings`)."""

    short_factor: list[float] = Field(min_length=1)
    """Divides each frequency in sequences of at most the original length; one number per frequency."""

    long_factor: list[float] = Field(min_length=1)
    """Divides each frequency in longer sequences; one number per frequency."""

    attention_factor: float | None = Field(None, gt=0)
    """Multiplies queries and keys. Default: sqrt(1 + ln(length / original_length) / ln(original_length))."""


Rope = Annotated[
    ThetaRope | LinearRope | DynamicRope | YarnRope | Llama3Rope | LongRope,
    Field(discriminator="name"),
]
