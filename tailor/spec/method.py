"""`method`: what is learned. One class per method, told apart by `name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tailor.spec.base import Section
from tailor.spec.data import EXAMPLES, PAIRS, RATED, RELEVANCE, TEXTS, Kind


class MethodSection(Section):
    """What all methods have."""

    reads: ClassVar[tuple[Kind, ...]]
    """Kinds of the rows that it learns from."""


class Sft(MethodSection):
    """Supervised fine-tuning: next-token loss on the supervised tokens."""

    reads = (EXAMPLES,)

    name: Literal["sft"]
    """The method."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised: all assistant turns, the last one, or every token.

    Plain text is always supervised in full, and a completion row on its response unless this says `everything`.
    """


class Pretrain(MethodSection):
    """Pretraining, from new weights or going on: next-token loss on every token of plain texts."""

    reads = (TEXTS,)

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

    reads = (PAIRS,)

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

    reads = (RATED,)

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


class Gritlm(MethodSection):
    """One model that embeds and generates (Muennighoff et al. 2024, arXiv 2402.09906): contrastive loss on queries
    with their passages, and next-token loss on conversations.

    The loss is `embedding_weight` times the mean over the queries of the global batch, plus `generative_weight` times
    the mean over its supervised tokens.
    """

    reads = (RELEVANCE, EXAMPLES)

    name: Literal["gritlm"]
    """The method."""

    mode: Literal["unified", "embedding", "generative"] = "unified"
    """What each step learns: to embed and to generate, or one of them."""

    pooling: Literal["mean", "weightedmean", "lasttoken", "cls"] = "mean"
    """How a text's tokens become one vector. Its instruction, BOS and format are seen, but not pooled.

    weightedmean: the n-th token counts n times. cls: the first token of all, BOS mostly.
    """

    projection: int | None = Field(None, ge=1)
    """Numbers of an embedding, by a linear layer that is trained too. Default: the model's hidden size, and no layer."""

    normalise: bool = True
    """Whether embeddings have length 1, so that a similarity is a cosine."""

    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """How texts to embed are read. Generation is always causal."""

    window: Literal["keep", "widen"] = "keep"
    """A model's sliding window in bidirectional attention: as far in both directions, or the whole text."""

    temperature: float = Field(0.02, gt=0)
    """What similarities are divided by."""

    group_size: int = Field(2, ge=1)
    """Passages of each query in a step: one that answers it, drawn anew each epoch, and others that do not."""

    negatives: Literal["global", "local", "hard"] = "global"
    """What a query's passage is told from: all passages of the global batch; those of the queries of the same worker, so
    that the loss depends on their number; or only the query's own that do not answer.
    """

    symmetric: bool = False
    """Also tell the query of each passage that answers from the batch's other queries; the mean of both losses."""

    mask_duplicates: bool = True
    """Leave passages out that the query's row itself says to answer, and those that answer the same query in another row."""

    false_negative_margin: float | None = Field(None, ge=0)
    """Leave passages out whose similarity to the query is larger than its answer's by more than this."""

    matryoshka: list[Annotated[int, Field(ge=1)]] = []
    """Shorter lengths that embeddings shall be useful at: the loss is the mean over these and the whole one."""

    generative_normalisation: Literal["token", "mixed"] = "token"
    """token: the mean over the batch's tokens. mixed: the mean over `train.micro_batch_size` sequences' tokens at a time,
    then over these means, as published.
    """

    embedding_weight: float = Field(1.0, gt=0)
    """Weight of the contrastive loss."""

    generative_weight: float = Field(1.0, gt=0)
    """Weight of the next-token loss."""

    embedding_batch_size: int = Field(256, ge=2)
    """Queries of a step, over all workers. They are of one source."""

    generative_batch_size: int = Field(32, ge=1)
    """Sequences to generate of a step, over all workers."""

    chunk_size: int | None = Field(None, ge=1)
    """Texts in one forward pass of one worker. Default: what fits, by the plan. Dropout alone depends on it."""

    engine: Literal["gradcache", "chunk_checkpoint"] = "gradcache"
    """How a batch of any size fits into memory: texts are embedded without gradients, then again chunk by chunk with
    those of the loss; or in one pass whose chunks are computed again in the backward pass.
    """

    max_query_length: int | None = Field(None, ge=8)
    """Longest query, in tokens, with its instruction. Default: `data.max_length`."""

    max_passage_length: int | None = Field(None, ge=8)
    """Longest passage, in tokens, with its instruction. Default: `data.max_length`."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised, as in sft."""

    @property
    def embeds(self) -> bool:
        return self.mode != "generative"

    @property
    def generates(self) -> bool:
        return self.mode != "embedding"


Method = Annotated[Sft | Pretrain | Dpo | Kto | Gritlm, Field(discriminator="name")]
METHODS: tuple[type[MethodSection], ...] = (Sft, Pretrain, Dpo, Kto, Gritlm)

ANSWERS = ("dpo", "kto")
"""Methods whose rows are answers to compare."""

REFERENCE_FREE = ("simpo", "orpo", "cpo")
"""Losses of dpo without a reference model."""

SMOOTHED = ("sigmoid", "robust", "simpo", "cpo")
"""Losses of dpo that know `label_smoothing`."""


def joins(method: Section) -> bool:
    """Whether rows are cut from a stream of joined documents."""
    return isinstance(method, Pretrain) and method.documents == "join"


def streams(method: Mapping[str, Any]) -> str:
    """A step of gritlm in words. method: its plain values."""
    parts = []
    if method["mode"] != "generative":
        passages = f"{method['group_size']} passage" + ("s" if method["group_size"] > 1 else "")
        parts.append(f"{method['embedding_batch_size']} queries with {passages} each")
    if method["mode"] != "embedding":
        parts.append(f"{method['generative_batch_size']} sequences to generate")
    return " and ".join(parts)
