"""`method`: what is learned. One class per method, told apart by `name`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.data import EXAMPLES, PAIRS, RATED


class MethodSection(Section):
    """What all methods have."""

    reads: ClassVar[tuple[str, ...]]
    """Formats of the rows that it learns from."""


class Sft(MethodSection):
    """Supervised fine-tuning: next-token loss on the supervised tokens."""

    reads = EXAMPLES

    name: Literal["sft"]
    """The method."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised: all assistant turns, the last one, or every token.

    Plain text is always supervised in full, and a completion row on its response unless this says `everything`.
    """


class Pretrain(MethodSection):
    """Pretraining, from new weights or going on: next-token loss on every token of plain texts."""

    reads = ("text",)

    name: Literal["pretrain"]
    """The method."""

    documents: Literal["join", "isolate"] = "join"
    """How documents share rows of `data.max_length` tokens.

    `join`: shuffled documents, each ended by EOS, make one stream that is cut into rows. Every row but the last is
    full, every token is learned once, and a token sees all before it in its row, of other documents too.
    `isolate`: as in `sft`, so `data.pack` and `data.on_long` decide, and no document sees another.
    """

    @property
    def train_on(self) -> Literal["everything"]:
        """Every token is supervised, in `sft`'s words."""
        return "everything"


class Dpo(MethodSection):
    """Direct preference optimisation: of two answers to a prompt, the chosen one becomes likelier than the rejected one.

    The loss is the mean over the pairs of the global batch.
    """

    reads = PAIRS

    name: Literal["dpo"]
    """The method."""

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "cpo"] = "sigmoid"
    """The loss of a pair. simpo, orpo and cpo need no reference model."""

    beta: float = Field(0.1, gt=0)
    """How much a difference of log-probabilities counts: larger keeps the model closer to the reference.

    For ipo it is the paper's tau, for orpo the weight of the odds-ratio term (lambda).
    """

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs whose labels are taken to be swapped. For sigmoid (conservative DPO), robust, simpo and cpo."""

    gamma: float = Field(0.5, ge=0)
    """Margin by which the chosen answer's reward must be larger, for simpo."""

    sft_weight: float | None = Field(None, ge=0)
    """Weight of the chosen answer's own loss, its mean over the answer's tokens. Default 1 for orpo and cpo, else 0."""

    reference: Literal["auto", "adapter_off", "copy", "precomputed"] = "auto"
    """Where the reference log-probabilities come from.

    adapter_off: the base under the adapter. copy: a frozen copy of the model. precomputed: computed once before
    training and kept beside the tokens. auto: adapter_off with an adapter, else copy, or precomputed where the
    workers share the weights out.
    """

    max_prompt_length: int | None = Field(None, ge=1)
    """Longest prompt, in tokens. With `data.on_long: truncate` the end of a longer one is kept."""

    max_completion_length: int | None = Field(None, ge=1)
    """Longest answer, in tokens. With `data.on_long: truncate` the start of a longer one is kept."""


class Kto(MethodSection):
    """Kahneman-Tversky optimisation: single answers that are labelled desirable or undesirable.

    The loss is the mean over the examples of the global batch.
    """

    reads = RATED

    name: Literal["kto"]
    """The method."""

    beta: float = Field(0.1, gt=0)
    """How much a difference of log-probabilities counts: larger keeps the model closer to the reference."""

    desirable_weight: float = Field(1.0, ge=0)
    """Weight of the desirable examples' losses."""

    undesirable_weight: float = Field(1.0, ge=0)
    """Weight of the undesirable examples' losses."""

    reference: Literal["auto", "adapter_off", "copy"] = "auto"
    """Where the reference log-probabilities come from.

    adapter_off: the base under the adapter. copy: a frozen copy of the model. auto: adapter_off with an adapter,
    else copy.
    """

    max_prompt_length: int | None = Field(None, ge=1)
    """Longest prompt, in tokens. With `data.on_long: truncate` the end of a longer one is kept."""

    max_completion_length: int | None = Field(None, ge=1)
    """Longest answer, in tokens. With `data.on_long: truncate` the start of a longer one is kept."""


Method = Annotated[Sft | Pretrain | Dpo | Kto, Field(discriminator="name")]
METHODS: tuple[type[MethodSection], ...] = (Sft, Pretrain, Dpo, Kto)

ANSWERS = ("dpo", "kto")
"""Methods whose rows are answers to compare."""

REFERENCE_FREE = ("simpo", "orpo", "cpo")
"""Losses of dpo without a reference model."""

SMOOTHED = ("sigmoid", "robust", "simpo", "cpo")
"""Losses of dpo that know `label_smoothing`."""


def joins(method: Section) -> bool:
    """Whether rows are cut from a stream of joined documents."""
    return isinstance(method, Pretrain) and method.documents == "join"
