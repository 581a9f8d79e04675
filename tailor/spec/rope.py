"""`model.rope`: RoPE for other lengths than the base model's. One class per type, chosen by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.base import Section


class RopeSection(Section):
    """Keys of all types."""

    theta: float | None = Field(None, gt=1)
    """Base of the RoPE frequencies (`rope_theta`). Default: the model's own."""


class ScaledRope(RopeSection):
    """Keys of the types that scale from an original length."""

    original_length: int = Field(ge=8)
    """Longest sequence of the base model before any RoPE scaling, in tokens. It is compared with the model's
    config.json.
    """


class ThetaRope(RopeSection):
    """Another base of the RoPE frequencies, without scaling (as in LongLLM-QLoRA)."""

    name: Literal["theta"]
    """The type."""

    theta: float = Field(gt=1)
    """Base of the RoPE frequencies (`rope_theta`). Raise it for longer sequences."""

    length: int = Field(ge=8)
    """Longest sequence of the model after training (`max_position_embeddings`), in tokens."""


class LinearRope(ScaledRope):
    """Positions are divided by a factor (position interpolation, arXiv 2306.15595)."""

    name: Literal["linear"]
    """The type."""

    factor: float = Field(gt=1)
    """Scaling factor: new length / original length."""

    length: int | None = Field(None, ge=8)
    """Longest sequence of the model after training, in tokens. Default: factor × original_length."""


class DynamicRope(ScaledRope):
    """The base of the frequencies grows with the sequence length beyond the original length (dynamic NTK).

    The frequencies depend on the longest sequence of a forward pass, so each row needs its own forward pass:
    `data.pack: false` and `train.micro_batch_size: 1`.
    """

    name: Literal["dynamic"]
    """The type."""

    factor: float = Field(gt=1)
    """Scaling factor: new length / original length."""

    length: int | None = Field(None, ge=8)
    """Longest sequence of the model after training, in tokens. Default: factor × original_length."""


class YarnRope(ScaledRope):
    """Low frequencies are divided by a factor, high ones are kept, with a ramp between them (YaRN, arXiv 2309.00071)."""

    name: Literal["yarn"]
    """The type."""

    factor: float = Field(gt=1)
    """Scaling factor: new length / original length."""

    length: int | None = Field(None, ge=8)
    """Longest sequence of the model after training, in tokens. Default: factor × original_length."""

    attention_factor: float | None = Field(None, gt=0)
    """Factor on queries and keys. Default: 0.1 × ln(factor) + 1."""

    beta_fast: float = Field(32.0, gt=0)
    """Frequencies with at least this many rotations within the original length are kept."""

    beta_slow: float = Field(1.0, gt=0)
    """Frequencies with at most this many rotations within the original length are divided by the factor."""


class Llama3Rope(ScaledRope):
    """The scaling of Llama 3.1.

    Long wavelengths are divided by a factor, short ones are kept, with a ramp between them.
    """

    name: Literal["llama3"]
    """The type."""

    factor: float = Field(gt=1)
    """Divides the frequencies of long wavelengths. Llama 3.1 uses 8 for a context 16 times as long."""

    length: int = Field(ge=8)
    """Longest sequence of the model after training (`max_position_embeddings`), in tokens."""

    low_freq_factor: float = Field(1.0, gt=0)
    """Wavelengths above original_length / low_freq_factor are long."""

    high_freq_factor: float = Field(4.0, gt=0)
    """Wavelengths below original_length / high_freq_factor are short."""


class LongRope(ScaledRope):
    """One factor per frequency, from one list for short and one for long sequences (LongRoPE, arXiv 2402.13753)."""

    name: Literal["longrope"]
    """The type."""

    length: int = Field(ge=8)
    """Longest sequence of the model after training (`max_position_embeddings`), in tokens."""

    short_factor: list[float] = Field(min_length=1)
    """Divisors of the frequencies for sequences up to the original length: one number per frequency."""

    long_factor: list[float] = Field(min_length=1)
    """Divisors of the frequencies for longer sequences: one number per frequency."""

    attention_factor: float | None = Field(None, gt=0)
    """Factor on queries and keys. Default: sqrt(1 + ln(length / original_length) / ln(original_length))."""


Rope = Annotated[
    ThetaRope | LinearRope | DynamicRope | YarnRope | Llama3Rope | LongRope,
    Field(discriminator="name"),
]
