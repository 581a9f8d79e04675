"""One model that embeds and generates (Muennighoff et al. 2024, arXiv 2402.09906), with batches of any size.

The contrastive loss depends on all texts of the batch at once, and their activations need not be kept: the loss gives a
gradient by each embedding, and an embedding depends on its own text alone. So texts are taken in chunks.

gradcache          (Gao et al. 2021, arXiv 2101.06983) All chunks but the first are embedded without a graph; the loss is
                   taken on the embeddings; each of these chunks is embedded again, with the same dropout, and its part of
                   the gradient goes back. So one chunk costs no more than the plain loss.
chunk_checkpoint   One forward pass over all chunks and one backward pass, which computes each chunk again.

Chunks are dealt to the workers whatever their queries are. Each worker holds the embeddings of all, takes the losses of a
share of the queries against all passages, and the gradients are summed: so the loss and its gradient are those of one
worker with the whole batch. The order of passes is texts first, for the last pass must reach every trained weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from tailor.data.batches import Batch, Batches
from tailor.data.grit_batches import GritBatch
from tailor.methods.base import LossSum, Method, MicroBatch, StepContext
from tailor.methods.contrastive import Contrast, Contrasted, contrast, share_of
from tailor.models.causal import CausalModel
from tailor.models.documents import Collator, TokenBatch
from tailor.models.embedding.embedder import embed
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.settings import Embedding
from tailor.plan import Plan
from tailor.spec.methods.gritlm import Gritlm as GritlmSpec


class Gritlm(Method):
    """A micro-batch is a chunk of texts to embed (it has a `pool`), or sequences to generate."""

    def __init__(self, spec: GritlmSpec) -> None:
        self.spec = spec
        self.settings = Embedding.of(spec)

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return 1  # the losses are means already

    def cut(self, batches: Batches, batch: Batch, plan: Plan) -> list[list[slice]]:
        assert isinstance(batch, GritBatch)
        lengths = [batches.length(row) for row in batch[: batch.texts]]
        size = plan.micro_batch_size
        examples = [slice(at, min(at + size, len(batch))) for at in range(batch.texts, len(batch), size)]
        return [chunks(lengths, plan.chunk_size, plan.chunk_tokens), examples]

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        assert isinstance(batch, GritBatch)
        if part.start >= batch.texts:
            return collator(batch[part])
        examples = [collator.split.example(row[0]) for row in batch[part] if isinstance(row, tuple)]
        texts = [(example.input_ids, example.spans) for example in examples]
        return lay_out_texts(texts, collator.layout, [int(index) for index in batch.text_index[part]])

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        raise AssertionError("the texts of a batch have no losses of their own")

    def backward(
        self,
        context: StepContext,
        batches: Batches,
        batch: Batch,
        micro_batches: Sequence[MicroBatch],
        prepass_mean: float,
    ) -> None:
        assert isinstance(batch, GritBatch)
        texts, examples = _kinds(micro_batches)
        if texts:
            engine = self._gradcache if self.spec.engine == "gradcache" else self._chunk_checkpoint
            contrasted = engine(context, batch, texts, ends_the_step=not examples)
            loss = self.spec.embedding_weight * contrasted.loss / batch.queries
            context.add(LossSum(loss, self._contrasted(context, batch, contrasted)))
        tokens = batches.supervised_tokens(batch)
        cuts = -(-(len(batch) - batch.texts) // context.plan.micro_batch_size)
        for index, one in enumerate(examples):
            own = len(one.batch.targets)
            # token: over all tokens of the batch. mixed: over this micro-batch's, then over the micro-batches.
            whole = tokens if self.spec.generative_normalization == "token" else own * cuts
            share = 1 / max(1, whole)
            with context.micro_batch(last=index == len(examples) - 1):
                summed, statistics = context.forward(one.number, _generated, one.batch)
                loss = self.spec.generative_weight * share * summed
                context.backward(loss * float(not one.is_padding))
            sums = {**statistics, "generative_loss": summed, "generative_units": torch.tensor(float(own))}
            context.add(
                LossSum(loss, {name: share * value for name, value in sums.items()}),
                is_padding=one.is_padding,
            )

    def measure(
        self,
        context: StepContext,
        batches: Batches,
        batch: Batch,
        micro_batches: Iterable[MicroBatch],
        prepass_mean: float,
    ) -> None:
        assert isinstance(batch, GritBatch)
        texts, examples = _kinds(micro_batches)
        nothing = torch.zeros((), device=context.device)
        if texts:
            vectors = self._embedded(context, batch, texts)
            contrasted = self._contrast(context, batch, vectors)
            context.add(LossSum(nothing, self._contrasted(context, batch, contrasted)))
        for one in examples:
            loss, hits = context.forward(one.number, CausalModel.next_token_loss_and_hits, one.batch)
            statistics = {"token_hits": hits, "generative_loss": loss}
            statistics["generative_units"] = torch.tensor(float(len(one.batch.targets)))
            context.add(LossSum(nothing, statistics), is_padding=one.is_padding)

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """The means of both losses and their weighted sum, how often the most similar passage is the answer, and what share
        of the queries had no other passage beside it, where any had none."""
        found: dict[str, float] = {"loss": 0.0}
        if queries := sums.get("queries"):
            found["embedding_loss"] = sums["embedding_loss"] / queries
            found["embedding_accuracy"] = sums["answers_found"] / queries
            if alone := sums["without_negatives"]:
                found["without_negatives"] = alone / queries
            found["loss"] += self.spec.embedding_weight * found["embedding_loss"]
        if over := sums.get("generative_units"):
            found["generative_loss"] = sums["generative_loss"] / over
            found["loss"] += self.spec.generative_weight * found["generative_loss"]
            if "router_loss" in sums:
                found["router_loss"] = sums["router_loss"] / over
            if "token_hits" in sums:
                found["perplexity"] = math.exp(min(found["generative_loss"], 700.0))
                found["token_accuracy"] = sums["token_hits"] / over
        return found

    def _gradcache(
        self, context: StepContext, batch: GritBatch, texts: Sequence[MicroBatch], *, ends_the_step: bool
    ) -> Contrasted:
        first, *others = texts
        with context.micro_batch(last=ends_the_step and not others):
            own = context.forward(first.number, embed, self.settings, first.batch)  # its graph is kept
            with torch.no_grad():
                vectors = self._embedded(context, batch, texts, [own.detach()])
                contrasted = self._contrast(context, batch, vectors)
                gradient = context.over_workers(contrasted.gradient) * self._weight(batch)
            context.backward((own * _slope(first, gradient)).sum())
        for index, one in enumerate(others, 1):
            with context.micro_batch(last=ends_the_step and index == len(others)):
                own = context.forward(one.number, embed, self.settings, one.batch)
                context.backward((own * _slope(one, gradient)).sum())
        return contrasted

    def _chunk_checkpoint(
        self, context: StepContext, batch: GritBatch, texts: Sequence[MicroBatch], *, ends_the_step: bool
    ) -> Contrasted:
        seeds = [context.seed(one.number) for one in texts]
        with context.micro_batch(last=ends_the_step):
            chunked = [one.batch for one in texts]
            parts = context.forward(texts[0].number, _embed_chunks, self.settings, chunked, seeds)
            own = _placed(batch, texts, parts)
            with torch.no_grad():
                vectors = context.over_workers(own.detach().clone())
            contrasted = self._contrast(context, batch, vectors)
            gradient = context.over_workers(contrasted.gradient) * self._weight(batch)
            context.backward((own * gradient).sum())
        return contrasted

    def _embedded(
        self,
        context: StepContext,
        batch: GritBatch,
        texts: Sequence[MicroBatch],
        known: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """The vectors of all texts of the batch, float32[texts, dimension], on every worker. Without a graph.

        known: those of the first micro-batches.
        """
        rest = texts[len(known) :]
        parts = [*known, *(context.forward(one.number, embed, self.settings, one.batch) for one in rest)]
        return context.over_workers(_placed(batch, texts, parts))

    def _contrast(self, context: StepContext, batch: GritBatch, vectors: torch.Tensor) -> Contrasted:
        """The losses of this worker's share of the queries."""
        excluded = batch.excluded if self.spec.mask_duplicates else np.zeros((0, 2), np.int64)
        block = -(-batch.queries // context.world)
        how = Contrast(batch.queries, batch.group, torch.from_numpy(excluded), block).to(context.device)
        return contrast(vectors, how, self.spec, share_of(batch.queries, context.rank, context.world))

    def _weight(self, batch: GritBatch) -> float:
        return self.spec.embedding_weight / batch.queries

    def _contrasted(self, context: StepContext, batch: GritBatch, of: Contrasted) -> dict[str, torch.Tensor]:
        share = share_of(batch.queries, context.rank, context.world)
        return {
            "embedding_loss": of.loss,
            "answers_found": of.hits,
            "without_negatives": of.alone,
            "queries": torch.tensor(float(len(share))),
        }


def chunks(lengths: Sequence[int], size: int | None, tokens: int) -> list[slice]:
    """Chunks of `size` texts each, or else of at most `tokens` tokens where a text is not longer. lengths: longest first."""
    if size is not None:
        return [slice(at, min(at + size, len(lengths))) for at in range(0, len(lengths), size)]
    found: list[slice] = []
    start = filled = 0
    for at, length in enumerate(lengths):
        if at > start and filled + length > tokens:
            found.append(slice(start, at))
            start, filled = at, 0
        filled += length
    return [*found, slice(start, len(lengths))] if lengths else []


def _kinds(micro_batches: Iterable[MicroBatch]) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """Texts to embed, and sequences to generate."""
    kinds: tuple[list[MicroBatch], list[MicroBatch]] = ([], [])
    for one in micro_batches:
        kinds[one.batch.pool is None].append(one)
    return kinds


def _placed(batch: GritBatch, texts: Sequence[MicroBatch], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """This worker's vectors at their index among all texts of the batch, and zeros at the others'."""
    own = [(one.batch.pool, part) for one, part in zip(texts, parts, strict=True) if not one.is_padding]
    whole = parts[0].new_zeros(batch.texts, parts[0].shape[1])
    if own:
        index = torch.cat([pool.text_index for pool, _ in own if pool is not None]).to(whole.device)
        whole = whole.index_copy(0, index, torch.cat([part for _, part in own]))
    return whole + 0.0 * sum(part.sum() for one, part in zip(texts, parts, strict=True) if one.is_padding)


def _slope(one: MicroBatch, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient by a micro-batch's vectors, of that by all of the batch; zeros where it does not count."""
    assert one.batch.pool is not None
    return gradient[one.batch.pool.text_index.to(gradient.device)] * float(not one.is_padding)


def _embed_chunks(
    model: CausalModel, settings: Embedding, batches: Sequence[TokenBatch], seeds: Sequence[int]
) -> list[torch.Tensor]:
    def seeded(batch: TokenBatch, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)  # also when it is computed again
        return embed(model, settings, batch)

    options: Any = {"use_reentrant": False, "preserve_rng_state": False}
    return [checkpoint(seeded, batch, seed, **options) for batch, seed in zip(batches, seeds, strict=True)]


def _generated(model: CausalModel, batch: TokenBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, statistics = model.training_loss(batch)
    if model.projection is not None:
        # It takes part, with nothing, so that the last pass of a step reaches every trained weight.
        loss = loss + 0.0 * sum(parameter.sum() for parameter in model.projection.parameters())
    return loss, statistics


def build(spec: GritlmSpec, reference: None) -> Gritlm:
    return Gritlm(spec)
