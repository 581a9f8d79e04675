"""`method` with `name: gritlm`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.data import EXAMPLES, RELEVANCE
from tailor.spec.methods.base import EmbeddingMethod, MethodSection, StreamSizes, TextLimits, Turns


class Gritlm(MethodSection):
    """One model that embeds and generates (Muennighoff et al. 2024, arXiv 2402.09906): contrastive loss on queries
    with their passages, and next-token loss on conversations.

    The loss is `embedding_weight` times the mean over the queries of the global batch, plus `generative_weight` times
    the mean over its supervised tokens.
    """

    implementation = "tailor.methods.gritlm:build"
    rules = "tailor.spec.rules.methods.gritlm"
    reads = (RELEVANCE, EXAMPLES)
    documents_per_pass = "reads many texts in one"
    embedding_key = "method.mode"

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

    normalize: bool = True
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

    generative_normalization: Literal["token", "mixed"] = "token"
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
    def supervised_turns(self) -> Turns:
        return self.train_on

    @property
    def generates(self) -> bool:
        return self.mode != "embedding"

    def text_limits(self, max_length: int) -> TextLimits:
        return TextLimits(
            query=self.max_query_length or max_length,
            passage=self.max_passage_length or max_length,
            negatives=self.group_size > 1,
        )

    @property
    def embedding(self) -> EmbeddingMethod | None:
        return None if self.mode == "generative" else self

    @property
    def streams(self) -> StreamSizes:
        return StreamSizes(
            queries=0 if self.mode == "generative" else self.embedding_batch_size,
            examples=0 if not self.generates else self.generative_batch_size,
            group=self.group_size,
        )

    @property
    def loss_keys(self) -> tuple[str, ...]:
        keys: tuple[str, ...] = ()
        if self.generative_normalization == "mixed":
            keys += ("train.micro_batch_size",)
        if self.negatives == "local":
            keys += ("scale.workers", "scale.workers.min", "scale.workers.max")
        return keys
