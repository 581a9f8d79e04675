"""Contrastive loss of queries against passages (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748) and its gradient.

    loss of query i = logsumexp_j s(i, j) - s(i, answer(i)),   s(i, j) = q_i · p_j / temperature

j runs over the passages that query i is contrasted with: its answer and its negatives. The gradient with respect to
the similarities is the softmax, minus one at the answer. The code computes one tile of similarities at a time, uses it
for the loss and for the gradient, and drops it, so that the whole Q × P matrix never exists. Everything is float32.
Shapes: see `tailor.models`; N = Q + P vectors of E numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tailor.methods.distillation import distillation_loss
from tailor.models.embedding.pooling import shorten
from tailor.spec.methods.gritlm import Gritlm

TILE_BYTES = 64 * 2**20
"""Maximum bytes of similarities that exist at one time: 16.8 million float32 numbers, e.g. 1024 queries × 16384 passages."""


@dataclass(frozen=True)
class ContrastiveBatch:
    """Which queries are contrasted with which passages of one batch.

    The vectors are ordered: first all queries, then `group` passages of each query, with its answer first.
    """

    queries: int
    group: int
    excluded: torch.Tensor
    """int64[k, 2]: pairs (query, passage) that are not contrasted; never a query and its own answer."""
    block: int
    """For local negatives: number of consecutive queries that use each other's passages, i.e. the queries of one worker."""

    scores: torch.Tensor | None = None
    """float32[Q, group]: a teacher's scores of the passages of each query, for distillation."""

    def to(self, device: torch.device) -> ContrastiveBatch:
        scores = None if self.scores is None else self.scores.to(device)
        return ContrastiveBatch(self.queries, self.group, self.excluded.to(device), self.block, scores)


def share_of(queries: int, rank: int, world: int) -> range:
    """The queries whose losses a worker computes."""
    return range(queries * rank // world, queries * (rank + 1) // world)


@dataclass(frozen=True)
class ContrastiveSum:
    """Loss and gradient of some of the queries of a batch."""

    loss: torch.Tensor
    """float32 scalar, summed over these queries."""
    gradient: torch.Tensor
    """float32[N, E], of `loss` with respect to all vectors of the batch."""
    hits: torch.Tensor
    """Scalar: queries whose answer is the most similar passage."""
    without_negatives: torch.Tensor
    """Scalar: queries that are contrasted with no passage but their answer. Their contrastive loss is 0."""
    distillation: torch.Tensor | None = None
    """float32 scalar, the part of `loss` that distills a teacher's scores, before its weight."""


def contrastive_loss(
    vectors: torch.Tensor, batch: ContrastiveBatch, spec: Gritlm, share: range
) -> ContrastiveSum:
    """Loss of the queries in `share`: the mean over the full length and the lengths in `spec.matryoshka`.

    With scores of a teacher, it is the weighted sum of the contrastive loss and of the distillation loss. vectors: float32[Q + P, E], before they are shortened and normalized.
    """
    lengths = [*spec.matryoshka, None]
    total, hits, without_negatives = (vectors.new_zeros(()) for _ in range(3))
    gradient = torch.zeros_like(vectors)  # [N, E]
    distilled: torch.Tensor | None = None
    for length in lengths:
        with torch.enable_grad():
            full = vectors.detach().requires_grad_()  # [N, E]
            embeddings = shorten(full, length, normalize=spec.normalize)  # [N, length]
        part = _both_directions(embeddings.detach(), batch, spec, share)
        if batch.scores is not None:
            part = _with_teacher(part, *distillation_loss(embeddings, batch.scores, spec, share), spec)
            assert part.distillation is not None
            distilled = part.distillation if distilled is None else distilled + part.distillation
        embeddings.backward(part.gradient)
        assert full.grad is not None
        total, gradient = total + part.loss, gradient.add_(full.grad)
        hits, without_negatives = part.hits, part.without_negatives  # those of the full length, which is last
    distilled = None if distilled is None else distilled / len(lengths)
    return ContrastiveSum(total / len(lengths), gradient / len(lengths), hits, without_negatives, distilled)


def _with_teacher(
    part: ContrastiveSum, loss: torch.Tensor, gradient: torch.Tensor, spec: Gritlm
) -> ContrastiveSum:
    """The weighted sum with a distillation loss."""
    own, taught = spec.contrastive_weight, spec.distillation_weight
    return ContrastiveSum(
        own * part.loss + taught * loss,
        own * part.gradient + taught * gradient,
        part.hits,
        part.without_negatives,
        loss,
    )


def _both_directions(
    embeddings: torch.Tensor, batch: ContrastiveBatch, spec: Gritlm, share: range
) -> ContrastiveSum:
    """From queries to passages. If the loss is symmetric, the mean of this and of passages to queries (as in CLIP)."""
    forward = _one_direction(embeddings, batch, spec, share, reverse=False)
    if not spec.symmetric:
        return forward
    reverse = _one_direction(embeddings, batch, spec, share, reverse=True)
    loss, gradient = (forward.loss + reverse.loss) / 2, (forward.gradient + reverse.gradient) / 2
    return ContrastiveSum(loss, gradient, forward.hits, forward.without_negatives)


def _one_direction(
    embeddings: torch.Tensor, batch: ContrastiveBatch, spec: Gritlm, share: range, *, reverse: bool
) -> ContrastiveSum:
    """Contrast each anchor with all candidates. reverse: the anchors are the answers, the candidates the queries.

    In the shapes, A is the number of anchors (always Q), C of candidates (P, or Q in reverse) and R of anchors in a tile.
    """
    queries, passages = embeddings[: batch.queries], embeddings[batch.queries :]  # [Q, E], [P, E]
    answers = torch.arange(batch.queries, device=embeddings.device) * batch.group  # int64[Q]
    anchors, candidates = (passages[answers], queries) if reverse else (queries, passages)  # [A, E], [C, E]
    targets = (
        answers // batch.group if reverse else answers
    )  # int64[A], the candidate that belongs to an anchor
    excluded = _excluded_pairs(batch, reverse=reverse)  # int64[k, 2]
    gradient = torch.zeros_like(embeddings)  # [N, E]
    anchor_gradient, candidate_gradient = torch.zeros_like(anchors), torch.zeros_like(candidates)
    loss, hits, without_negatives = (embeddings.new_zeros(()) for _ in range(3))
    tile = max(1, TILE_BYTES // (4 * max(1, len(candidates))))
    for start in range(share.start, share.stop, tile):
        rows = torch.arange(start, min(start + tile, share.stop), device=embeddings.device)  # int64[R]
        part, target = anchors[rows], targets[rows, None]  # [R, E], int64[R, 1]
        similarity = part @ candidates.T  # [R, C]
        answer = similarity.gather(1, target)  # [R, 1]
        masked = _masked_by_negatives(rows, len(candidates), batch, spec, reverse=reverse)  # bool[R, C]
        in_tile = (excluded[:, 0] >= start) & (excluded[:, 0] < start + len(rows))  # bool[k]
        masked[excluded[in_tile, 0] - start, excluded[in_tile, 1]] = True
        if spec.false_negative_margin is not None:
            masked |= similarity > answer + spec.false_negative_margin
        masked.scatter_(1, target, False)
        without_negatives += (masked.sum(1) == len(candidates) - 1).sum()
        similarity = similarity.masked_fill_(masked, -torch.inf).div_(spec.temperature)
        hits += (similarity.argmax(1, keepdim=True) == target).sum()
        normalizer = similarity.logsumexp(1, keepdim=True)  # [R, 1]
        loss += (normalizer - similarity.gather(1, target)).sum()
        slope = similarity.sub_(normalizer).exp_()  # [R, C], in the memory of `similarity`: the softmax
        slope = slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0)).div_(spec.temperature)
        anchor_gradient[rows] = slope @ candidates  # [R, E]
        candidate_gradient += slope.T @ part  # [C, E]
    if reverse:
        gradient[: batch.queries] += candidate_gradient
        gradient[batch.queries :].index_add_(0, answers, anchor_gradient)
    else:
        gradient[: batch.queries] += anchor_gradient
        gradient[batch.queries :] += candidate_gradient
    return ContrastiveSum(loss, gradient, hits, without_negatives)


def _excluded_pairs(batch: ContrastiveBatch, *, reverse: bool) -> torch.Tensor:
    """int64[k, 2]: pairs (anchor, candidate) that are not contrasted. In reverse only answers are anchors, so that pairs
    with other passages drop out."""
    if not reverse:
        return batch.excluded
    query, passage = batch.excluded.unbind(1)  # int64[k], int64[k]
    is_answer = passage % batch.group == 0  # bool[k]
    return torch.stack([passage[is_answer] // batch.group, query[is_answer]], dim=1)


def _masked_by_negatives(
    rows: torch.Tensor, columns: int, batch: ContrastiveBatch, spec: Gritlm, *, reverse: bool
) -> torch.Tensor:
    """bool[R, C]: candidates that `spec.negatives` leaves out."""
    owner = torch.arange(columns, device=rows.device) // (
        1 if reverse else batch.group
    )  # int64[C], its query
    if spec.negatives == "hard":
        return owner[None, :] != rows[:, None]
    if spec.negatives == "local":
        return owner[None, :] // batch.block != rows[:, None] // batch.block
    return torch.zeros(len(rows), columns, dtype=torch.bool, device=rows.device)
