"""`method` with `name: gritlm`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tailor.spec.data import EXAMPLES, RELEVANCE
from tailor.spec.methods.base import (
    EmbeddingMethod,
    LossTerms,
    MethodSection,
    StreamSizes,
    TextAttention,
    TextLimits,
    Turns,
)


class Gritlm(MethodSection):
    """One model for embedding and generation (GRIT, arXiv 2402.09906).

    It has a contrastive loss on queries with their passages, and a next-token loss on conversations. The loss is
    `embedding_weight` times the mean over the queries of the global batch, plus `generative_weight` times the mean
    over its supervised tokens.
    """

    implementation = "tailor.methods.gritlm:build"
    metrics = ("embedding_loss", "distillation_loss", "embedding_accuracy", "generative_loss")
    rules = "tailor.spec.rules.methods.gritlm"
    reads = (RELEVANCE, EXAMPLES)
    documents_per_pass = "puts many texts into one forward pass"
    embedding_key = "method.mode"

    name: Literal["gritlm"]
    """The method."""

    mode: Literal["unified", "embedding", "generative"] = "unified"
    """`unified` trains embedding and generation in each step; `embedding` and `generative` train one of them."""

    pooling: Literal["mean", "weightedmean", "lasttoken", "cls"] = "mean"
    """How the hidden states of a text's tokens become one vector. The tokens of instruction, BOS and format are
    attended to but not pooled. `weightedmean`: the n-th token has weight n. `lasttoken`: the last token. `cls`: the
    first token of the sequence, usually BOS.
    """

    projection: int | None = Field(None, ge=1)
    """Dimension of the embedding, through a linear layer that is trained too. Default: the model's hidden size,
    without such a layer.
    """

    normalize: bool = True
    """Normalize embeddings to length 1, so that similarities are cosines."""

    attention: TextAttention = "bidirectional"
    """Attention for texts to embed. `bidirectional_instruction`: the tokens before the text (BOS, instruction, format) attend
    to each other in both directions, those of the text to all earlier tokens. `bidirectional_text`: the text attends to
    everything, and the tokens before it to earlier tokens only.
    """

    generative_attention: Literal["causal", "prefix_lm"] = "causal"
    """Attention for sequences to generate. `prefix_lm`: the tokens before the answer attend to each other in both
    directions; needs `train_on: last_assistant`. tailor generates in the same way with the trained model; other programs
    would read the prompt causally.
    """

    window: Literal["keep", "widen"] = "keep"
    """For models with sliding-window attention whose texts are not read causally: `keep` applies the window in both
    directions, `widen` attends to the whole text.
    """

    temperature: float = Field(0.02, gt=0)
    """Temperature of the contrastive loss: similarities are divided by it."""

    group_size: int = Field(2, ge=1)
    """Passages per query in a step: one positive, drawn again in each epoch, and group_size - 1 negatives of the
    query's row. A row without negatives gets random passages of other rows of its dataset (see batch_by), drawn again in each epoch.
    """

    negatives: Literal["global", "local", "hard"] = "global"
    """Which passages a query's positive is contrasted with. `global`: all passages of the global batch. `local`: the
    passages of the queries on the same worker, so the loss depends on the number of workers. `hard`: only the query's
    own negatives.
    """

    embedding_gradients: Literal["all", "queries", "passages"] = "all"
    """Which texts the contrastive loss trains. With `queries` or `passages`, the embeddings of the others are constants of the
    loss and cost no backward pass.
    """

    symmetric: bool = False
    """Also contrast each positive passage with all queries of the batch; the loss is the mean of both directions."""

    mask_duplicates: bool = True
    """Leave known false negatives out of the loss: passages with the text of the query itself, or with that of a positive
    of the query in its own row or in another row with the same query.
    """

    false_negative_margin: float | None = Field(None, ge=0)
    """Leave likely false negatives out of the loss: passages whose similarity to the query exceeds that of the
    positive by more than this margin. Default: off.
    """

    matryoshka: list[Annotated[int, Field(ge=1)]] = []
    """Matryoshka representation learning (arXiv 2205.13147): shorter dimensions at which embeddings can be cut. The
    loss is the mean over these and the full dimension.
    """

    distillation: Literal["kl", "margin_mse"] | None = None
    """Also learn a teacher's scores of the passages of each row (`pos_scores` and `neg_scores`, or `scores`; `tailor score`
    writes them). `kl`: the KL divergence between the softmax of the teacher's scores and that of the query's similarities to
    the passages of its group, divided by the temperature. `margin_mse`: the mean squared error of the differences
    between the positive's score and those of the negatives (arXiv 2010.02666). Default: off.
    """

    distillation_weight: float = Field(1.0, gt=0)
    """Weight of the distillation loss in the embedding loss."""

    contrastive_weight: float = Field(1.0, ge=0)
    """Weight of the contrastive loss beside the distillation loss. 0: learn the teacher's scores only."""

    teacher_temperature: float = Field(1.0, ge=1e-6)
    """With `distillation: kl`, the teacher's scores are divided by it. The scores of a cross-encoder are logits, which suit 1;
    cosine similarities need a small one, such as 0.02.
    """

    generative_normalization: Literal["token", "mixed", "sequence"] = "token"
    """`token`: the mean over all supervised tokens of the batch. `mixed`: the mean over the tokens of each
    `train.micro_batch_size` sequences, then over these means, as in the published GritLM. `sequence`: the sum over all
    supervised tokens, divided by the number of sequences; GritLM's `--loss_gen_type token`.
    """

    embedding_weight: float = Field(1.0, gt=0)
    """Weight of the contrastive loss."""

    generative_weight: float = Field(1.0, gt=0)
    """Weight of the next-token loss."""

    embedding_batch_size: int = Field(256, ge=2)
    """Queries per step, over all workers. More queries give more negatives."""

    batch_by: Literal["dataset", "source"] = "dataset"
    """Where all queries of a batch come from, so that in-batch negatives belong to the same task. `dataset`: one file, as in
    the published GritLM, or the rows with one value of the source's `dataset_column`. `source`: one entry of
    `data.train`.
    """

    no_duplicates: bool = False
    """No training batch has the text of a query or passage in two of its rows. Rows that share a text go to different
    batches of the epoch, which has more and smaller batches if one text is in more rows than there would be batches.
    """

    generative_batch_size: int = Field(32, ge=1)
    """Sequences for the next-token loss per step, over all workers."""

    chunk_size: int | None = Field(None, ge=1)
    """Texts to embed in one forward pass of one worker. Default: as many as fit into memory by the plan's estimate.
    It does not change the loss, except through dropout.
    """

    engine: Literal["gradcache", "chunk_checkpoint"] = "gradcache"
    """How a large batch fits into memory. `gradcache` (arXiv 2101.06983): embed all texts without gradients, then
    embed them again chunk by chunk and apply the loss's gradients. `chunk_checkpoint`: one forward pass whose chunks
    are recomputed in the backward pass.
    """

    kept_chunks: int = Field(1, ge=1)
    """Chunks of a worker that keep their activations with `gradcache` until the loss is known, and so are embedded once. More
    take more memory and less time: with all of them a step would take three quarters of the time. It does not change the
    loss. The last chunk of several is always embedded twice.
    """

    max_query_length: int | None = Field(None, ge=8)
    """Longest query with its instruction, in tokens. Default: `data.max_length`."""

    max_passage_length: int | None = Field(None, ge=8)
    """Longest passage with its instruction, in tokens. Default: `data.max_length`."""

    train_on: Literal["assistant", "last_assistant", "everything"] = "assistant"
    """Which tokens of a conversation are supervised: all `assistant` turns, the `last_assistant` turn, or
    `everything`.
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the next-token loss: the target of a token is 1 - label_smoothing for the right token, plus
    label_smoothing spread evenly over the vocabulary, as in PyTorch's cross_entropy. Only in training.
    """

    z_loss: float = Field(0.0, ge=0, le=1000)
    """Coefficient of the z-loss (PaLM, arXiv 2204.02311): the squared logsumexp of the logits, averaged over the
    supervised tokens. It keeps logits from drifting. Typical: 1e-5 to 1e-4. Only in training.
    """

    neftune_alpha: float = Field(0.0, ge=0, le=1000)
    """NEFTune (arXiv 2310.05914): uniform noise on the embedded tokens of the sequences to generate in training, of at
    most neftune_alpha / sqrt(tokens of the document × hidden size). Typical: 5 to 15. Default: off.
    """

    @property
    def supervised_turns(self) -> Turns:
        return self.train_on

    @property
    def loss_terms(self) -> LossTerms:
        return LossTerms(self.label_smoothing, self.z_loss)

    @property
    def embedding_noise(self) -> float:
        return self.neftune_alpha

    @property
    def prefix_lm(self) -> bool:
        return self.generates and self.generative_attention == "prefix_lm"

    @property
    def generates(self) -> bool:
        return self.mode != "embedding"

    def text_limits(self, max_length: int) -> TextLimits:
        return TextLimits(
            query=self.max_query_length or max_length,
            passage=self.max_passage_length or max_length,
            negatives=self.group_size > 1,
            scores=self.distillation is not None,
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
            distinct=self.no_duplicates,
            by=self.batch_by,
            first="longest" if self.embedding_gradients == "all" else self.embedding_gradients,
        )

    @property
    def loss_keys(self) -> tuple[str, ...]:
        keys: tuple[str, ...] = ()
        if self.generative_normalization == "mixed":
            keys += ("train.micro_batch_size",)
        if self.negatives == "local":
            keys += ("scale.workers", "scale.workers.min", "scale.workers.max")
        return keys
