"""GRITLM: one model that embeds and generates (Muennighoff et al. 2024, arXiv 2402.09906), with batches of any size.

The contrastive loss depends on the embeddings of all texts of the batch. Their activations need not be in memory at the
same time: the loss gives a gradient for each embedding, and an embedding depends on its own text alone. The texts are
therefore embedded in chunks, by one of two engines:

gradcache          (Gao et al. 2021, arXiv 2101.06983) Embed the chunks, most of them without a graph. Compute the loss and its
                   gradient with respect to the embeddings. Embed each chunk without a graph again, with one and the same
                   dropout, and run its backward pass. Some chunks keep their graph and are embedded once (`kept_chunks`); one always does, so that a batch of one chunk costs no more than the plain
                   loss.
chunk_checkpoint   One forward pass over all chunks and one backward pass. Activation checkpointing computes each chunk
                   again in the backward pass.

Each worker embeds some of the chunks; which queries they contain does not matter. An all-reduce gives every worker all
embeddings. Each worker then computes the losses of its share of the queries against all passages, and the gradients are
summed. Loss and gradient are therefore those of a single worker with the whole batch. The texts go first and the sequences
to generate last, because the last pass of a step must use every trained weight, and texts do not use the output head.
Shapes: see `tailor.models`; N = Q + P texts, and E numbers per embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from tailor.data.batches import Batch, Batches
from tailor.data.grit_batches import GritBatch
from tailor.methods import text_chunks
from tailor.methods.base import LossSum, Method, MicroBatch, StepContext
from tailor.methods.contrastive import ContrastiveBatch, ContrastiveSum, contrastive_loss, share_of
from tailor.methods.text_chunks import embed_chunks, gradient_of, scatter_by_text
from tailor.models.causal import CausalModel
from tailor.models.collator import Collator
from tailor.models.documents import TokenBatch
from tailor.models.embedding.embedder import embed, embed_to_train
from tailor.models.embedding.layout import lay_out_texts
from tailor.models.embedding.settings import Embedding
from tailor.plan import Plan
from tailor.spec.methods.base import LossTerms
from tailor.spec.methods.gritlm import Gritlm as GritlmSpec


class Gritlm(Method):
    """GRITLM's two losses. A micro-batch holds either texts to embed (it has a `pool`) or sequences to generate."""

    def __init__(self, spec: GritlmSpec) -> None:
        self.spec = spec
        self.settings = Embedding.of(spec)

    def denominator(self, batches: Batches, batch: Batch) -> int:
        return 1  # `backward` divides the two losses itself: each has its own denominator

    def cut(self, batches: Batches, batch: Batch, plan: Plan) -> list[list[slice]]:
        assert isinstance(batch, GritBatch)
        lengths = [batches.length(row) for row in batch[: batch.texts]]
        trained = self._trained(batch)
        texts = [
            [
                slice(part.start + first, part.stop + first)
                for part in text_chunks.cut(some, plan.chunk_size, plan.chunk_tokens)
            ]
            for first, some in ((0, lengths[:trained]), (trained, lengths[trained:]))
        ]
        size = plan.micro_batch_size
        examples = [
            slice(first, min(first + size, len(batch))) for first in range(batch.texts, len(batch), size)
        ]
        return [*texts, examples]

    def _trained(self, batch: GritBatch) -> int:
        """Number of texts that the contrastive loss trains. They are the first rows of the batch."""
        passages = batch.texts - batch.queries
        return {"all": batch.texts, "queries": batch.queries, "passages": passages}[
            self.spec.embedding_gradients
        ]

    def read(self, collator: Collator, batch: Batch, part: slice) -> TokenBatch:
        assert isinstance(batch, GritBatch)
        if part.start >= batch.texts:
            return collator(batch[part])
        examples = [collator.split.example(row[0]) for row in batch[part] if isinstance(row, tuple)]
        texts = [(example.input_ids, example.spans) for example in examples]
        return lay_out_texts(texts, collator.layout, [int(index) for index in batch.text_index[part]])

    def loss(self, model: CausalModel, batch: TokenBatch, prepass_mean: float) -> LossSum:
        raise AssertionError("the contrastive loss is that of a batch, not of a micro-batch")

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
            sums = engine(context, batch, texts, ends_the_step=not examples)
            loss = self.spec.embedding_weight * sums.loss / batch.queries
            context.add(LossSum(loss, self._statistics(context, batch, sums)))
        tokens = batches.supervised_tokens(batch)
        count = -(-(len(batch) - batch.texts) // context.plan.micro_batch_size)  # micro-batches, all workers
        for index, micro in enumerate(examples):
            supervised = len(micro.batch.targets)
            # token: the mean over all tokens of the batch. mixed: the mean over the micro-batches of their token means.
            # sequence: the mean over the sequences of their sums.
            divisors = {"token": tokens, "mixed": supervised * count, "sequence": len(batch) - batch.texts}
            divisor = divisors[self.spec.generative_normalization]
            weight = 1 / max(1, divisor)
            with context.micro_batch(last=index == len(examples) - 1):
                summed, statistics = context.forward(
                    micro.number, _generative_loss, micro.batch, self.spec.loss_terms
                )
                loss = self.spec.generative_weight * weight * summed
                context.backward(loss * float(not micro.is_padding))
            units = torch.tensor(self._units(micro.batch))
            parts = {**statistics, "generative_loss": summed, "generative_units": units}
            context.add(
                LossSum(loss, {name: weight * value for name, value in parts.items()}),
                is_padding=micro.is_padding,
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
        zero = torch.zeros((), device=context.device)  # `metrics` computes the loss from the statistics
        if texts:
            vectors = self._embed_all(context, batch, texts)  # [N, E]
            sums = self._contrastive_loss(context, batch, vectors)
            context.add(LossSum(zero, self._statistics(context, batch, sums)))
        for micro in examples:
            loss, hits = context.forward(micro.number, CausalModel.next_token_loss_and_hits, micro.batch)
            statistics = {"token_hits": hits, "generative_loss": loss}
            statistics["generative_units"] = torch.tensor(self._units(micro.batch))
            statistics["generative_tokens"] = torch.tensor(float(len(micro.batch.targets)))
            context.add(LossSum(zero, statistics), is_padding=micro.is_padding)

    def _units(self, batch: TokenBatch) -> float:
        """What the generative loss of a micro-batch is averaged over: its supervised tokens or its sequences."""
        per_sequence = self.spec.generative_normalization == "sequence"
        return float(len(batch.supervised) if per_sequence else len(batch.targets))

    def metrics(self, sums: Mapping[str, float], denominator: int) -> dict[str, float]:
        """The means of the losses and their weighted sum; the share of queries whose most similar passage is their answer;
        and, if above 0, the share of queries without negatives."""
        found: dict[str, float] = {"loss": 0.0}
        if queries := sums.get("queries"):
            found["embedding_loss"] = sums["embedding_loss"] / queries
            found["embedding_accuracy"] = sums["answers_found"] / queries
            for name in ("distillation_loss", "embedding_router_loss", "embedding_router_z_loss"):
                if name in sums:
                    found[name] = sums[name] / queries
            if count := sums["without_negatives"]:
                found["without_negatives"] = count / queries
            found["loss"] += self.spec.embedding_weight * found["embedding_loss"]
        if units := sums.get("generative_units"):
            found["generative_loss"] = sums["generative_loss"] / units
            found["loss"] += self.spec.generative_weight * found["generative_loss"]
            for name in ("cross_entropy", "z_loss", "router_loss", "router_z_loss"):
                if name in sums:
                    found[name] = sums[name] / units
            if "token_hits" in sums:
                tokens = sums["generative_tokens"]
                mean = min(sums["generative_loss"] / tokens, 700.0)  # exp overflows above 709
                found |= {"perplexity": math.exp(mean), "token_accuracy": sums["token_hits"] / tokens}
        return found

    def _gradcache(
        self, context: StepContext, batch: GritBatch, texts: Sequence[MicroBatch], *, ends_the_step: bool
    ) -> ContrastiveSum:
        texts, constants = self._apart(batch, texts)
        # DDP reduces the gradients in the backward pass that follows the last forward pass with a graph: the last chunk's.
        count = max(1, min(self.spec.kept_chunks, len(texts) - 1))
        kept, others = texts[:count], texts[count:]
        with context.micro_batch(last=ends_the_step and not others):
            parts = [self._embed(context, batch, micro) for micro in kept]
            with torch.no_grad():
                known = [vectors.detach() for vectors, _ in parts]
                vectors = self._embed_all(context, batch, [*texts, *constants], known)  # [N, E]
                sums = self._contrastive_loss(context, batch, vectors)
                gradient = context.over_workers(sums.gradient) * self._weight(batch)  # [N, E]
            for micro in kept:
                vectors, routers = parts.pop(0)
                # The gradient of this sum with respect to the weights is that of the contrastive loss: chain rule.
                context.backward((vectors * gradient_of(micro, gradient)).sum() + routers)
                del vectors, routers  # frees the graph
        for index, micro in enumerate(others, 1):
            with context.micro_batch(last=ends_the_step and index == len(others)):
                vectors, routers = self._embed(context, batch, micro)
                context.backward((vectors * gradient_of(micro, gradient)).sum() + routers)
        return sums

    def _chunk_checkpoint(
        self, context: StepContext, batch: GritBatch, texts: Sequence[MicroBatch], *, ends_the_step: bool
    ) -> ContrastiveSum:
        texts, constants = self._apart(batch, texts)
        seeds = [context.seed(micro.number) for micro in texts]
        with context.micro_batch(last=ends_the_step):
            token_batches = [micro.batch for micro in texts]
            parts = context.forward(
                texts[0].number, embed_chunks, self.settings, token_batches, seeds, self._unit(batch)
            )
            local = scatter_by_text(batch, texts, [vectors for vectors, _, _ in parts])  # [N, E]
            pairs = zip(texts, parts, strict=True)
            routers = sum(self._routers(context, batch, micro, *found) for micro, (_, *found) in pairs)
            with torch.no_grad():
                vectors = context.over_workers(local.detach().clone())  # [N, E]
                if constants:
                    vectors = vectors + self._embed_all(context, batch, constants)
            sums = self._contrastive_loss(context, batch, vectors)
            gradient = context.over_workers(sums.gradient) * self._weight(batch)  # [N, E]
            context.backward((local * gradient).sum() + routers)
        return sums

    def _embed(
        self, context: StepContext, batch: GritBatch, micro: MicroBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings of a chunk [texts of the chunk, E] and its part of the routers' loss, with their graphs."""
        vectors, *found = context.forward(
            micro.number, embed_to_train, self.settings, micro.batch, self._unit(batch)
        )
        return vectors, self._routers(context, batch, micro, *found)

    def _unit(self, batch: GritBatch) -> float:
        """The weight of each trained text in the routers' loss, so that all have that of the queries, which divide the loss."""
        return batch.queries / self._trained(batch)

    def _routers(
        self,
        context: StepContext,
        batch: GritBatch,
        micro: MicroBatch,
        routers: torch.Tensor,
        statistics: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """A chunk's part of the routers' loss, divided as the contrastive loss. Adds it to the totals."""
        loss = self._weight(batch) * routers
        if statistics:
            named = {f"embedding_{name}": value for name, value in statistics.items()}
            context.add(LossSum(loss, {"embedding_loss": routers, **named}), is_padding=micro.is_padding)
        return loss * float(not micro.is_padding)

    def _apart(
        self, batch: GritBatch, texts: Sequence[MicroBatch]
    ) -> tuple[Sequence[MicroBatch], Sequence[MicroBatch]]:
        """The micro-batches of texts that the contrastive loss trains, and those whose embeddings are constants of it."""
        if self.spec.embedding_gradients == "all":
            return texts, ()
        kinds: tuple[list[MicroBatch], list[MicroBatch]] = ([], [])
        for micro in texts:
            assert micro.batch.pool is not None
            is_query = bool(micro.batch.pool.text_index[0] < batch.queries)
            kinds[is_query != (self.spec.embedding_gradients == "queries")].append(micro)
        return kinds

    def _embed_all(
        self,
        context: StepContext,
        batch: GritBatch,
        texts: Sequence[MicroBatch],
        known: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Embeddings of all texts of the batch on every worker, float32[N, E], without a graph.

        known: embeddings of the first micro-batches, if they are computed already.
        """
        rest = texts[len(known) :]
        parts = [
            *known,
            *(context.forward(micro.number, embed, self.settings, micro.batch) for micro in rest),
        ]
        return context.over_workers(scatter_by_text(batch, texts, parts))

    def _contrastive_loss(
        self, context: StepContext, batch: GritBatch, vectors: torch.Tensor
    ) -> ContrastiveSum:
        """Loss and gradient of this worker's share of the queries. vectors: [N, E]."""
        excluded = batch.excluded if self.spec.mask_duplicates else np.zeros((0, 2), np.int64)
        block = -(-batch.queries // context.world)
        scores = torch.from_numpy(batch.scores()) if self.spec.distillation is not None else None
        pairs = ContrastiveBatch(batch.queries, batch.group, torch.from_numpy(excluded), block, scores)
        share = share_of(batch.queries, context.rank, context.world)
        return contrastive_loss(vectors, pairs.to(context.device), self.spec, share)

    def _weight(self, batch: GritBatch) -> float:
        return self.spec.embedding_weight / batch.queries

    def _statistics(
        self, context: StepContext, batch: GritBatch, sums: ContrastiveSum
    ) -> dict[str, torch.Tensor]:
        share = share_of(batch.queries, context.rank, context.world)
        distillation = {} if sums.distillation is None else {"distillation_loss": sums.distillation}
        return {
            **distillation,
            "embedding_loss": sums.loss,
            "answers_found": sums.hits,
            "without_negatives": sums.without_negatives,
            "queries": torch.tensor(float(len(share))),
        }


def _kinds(micro_batches: Iterable[MicroBatch]) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """Separate the micro-batches into texts to embed and sequences to generate."""
    kinds: tuple[list[MicroBatch], list[MicroBatch]] = ([], [])
    for micro in micro_batches:
        kinds[micro.batch.pool is None].append(micro)
    return kinds


def _generative_loss(
    model: CausalModel, batch: TokenBatch, terms: LossTerms
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss, statistics = model.training_loss(batch, terms)
    if model.projection is not None:
        # Times 0: the last pass of a step must use every trained weight, and generation does not use the projection.
        loss = loss + 0.0 * sum(parameter.sum() for parameter in model.projection.parameters())
    return loss, statistics


def build(spec: GritlmSpec, reference: None) -> Gritlm:
    return Gritlm(spec)
