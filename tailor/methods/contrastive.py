"""Contrastive loss of queries against passages (InfoNCE, van den Oord et al. 2018), with its gradient, tile by tile.

    loss of query i = logsumexp_j s(i, j) - s(i, answer(i)),   s(i, j) = q_i · p_j / temperature

over the passages j that i is told from. The gradient by a similarity is softmax minus one at the answer, so a tile of
similarities is made once, used for both, and forgotten. Everything is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tailor.models.embedding.pooling import shorten
from tailor.spec.methods.gritlm import Gritlm

TILE_BYTES = 64 * 2**20
"""Most bytes of similarities that exist at one time."""


@dataclass(frozen=True)
class Contrast:
    """Who is told from whom in one batch. Vectors stand queries first, then `group` passages of each, the answer leading."""

    queries: int
    group: int
    excluded: torch.Tensor
    """int64[k, 2]: (query, passage) that are not told from each other; never a query's own answer."""
    block: int
    """Queries with which a query shares its passages, for local negatives: those of one worker."""

    def to(self, device: torch.device) -> Contrast:
        return Contrast(self.queries, self.group, self.excluded.to(device), self.block)


def share_of(queries: int, rank: int, world: int) -> range:
    """The queries whose losses a worker computes."""
    return range(queries * rank // world, queries * (rank + 1) // world)


@dataclass(frozen=True)
class Contrasted:
    """Of a share of the queries: the summed loss, its gradient by all vectors, how many answers are the most similar, and how
    many queries are told from no passage at all, so that they teach nothing."""

    loss: torch.Tensor
    gradient: torch.Tensor
    hits: torch.Tensor
    alone: torch.Tensor


def contrast(vectors: torch.Tensor, how: Contrast, spec: Gritlm, share: range) -> Contrasted:
    """Losses of the queries in `share`, each the mean over the whole length and `spec.matryoshka`.

    vectors: float32[queries + queries · group, dimension], before they are cut and normalized.
    """
    lengths = [*spec.matryoshka, None]
    total, hits, alone = (vectors.new_zeros(()) for _ in range(3))
    gradient = torch.zeros_like(vectors)
    for length in lengths:
        with torch.enable_grad():
            own = vectors.detach().requires_grad_()
            embeddings = shorten(own, length, normalize=spec.normalize)
        part = _all_ways(embeddings.detach(), how, spec, share)
        embeddings.backward(part.gradient)
        assert own.grad is not None
        total, gradient, hits, alone = total + part.loss, gradient.add_(own.grad), part.hits, part.alone
    return Contrasted(total / len(lengths), gradient / len(lengths), hits, alone)


def _all_ways(embeddings: torch.Tensor, how: Contrast, spec: Gritlm, share: range) -> Contrasted:
    """From queries to passages, and back too where the loss is symmetric."""
    forth = _one_way(embeddings, how, spec, share, back=False)
    if not spec.symmetric:
        return forth
    back = _one_way(embeddings, how, spec, share, back=True)
    loss, gradient = (forth.loss + back.loss) / 2, (forth.gradient + back.gradient) / 2
    return Contrasted(loss, gradient, forth.hits, forth.alone)


def _one_way(
    embeddings: torch.Tensor, how: Contrast, spec: Gritlm, share: range, *, back: bool
) -> Contrasted:
    queries, passages = embeddings[: how.queries], embeddings[how.queries :]
    answers = torch.arange(how.queries, device=embeddings.device) * how.group
    asking, asked = (passages[answers], queries) if back else (queries, passages)
    targets = answers // how.group if back else answers
    excluded = _excluded(how, targets, back=back)
    gradient = torch.zeros_like(embeddings)
    by_asking, by_asked = torch.zeros_like(asking), torch.zeros_like(asked)
    loss, hits, alone = (embeddings.new_zeros(()) for _ in range(3))
    step = max(1, TILE_BYTES // (4 * max(1, len(asked))))
    for start in range(share.start, share.stop, step):
        rows = torch.arange(start, min(start + step, share.stop), device=embeddings.device)
        here, target = asking[rows], targets[rows, None]
        similar = here @ asked.T
        answer = similar.gather(1, target)
        left_out = _left_out(rows, len(asked), how, spec, back=back)
        inside = (excluded[:, 0] >= start) & (excluded[:, 0] < start + len(rows))
        left_out[excluded[inside, 0] - start, excluded[inside, 1]] = True
        if spec.false_negative_margin is not None:
            left_out |= similar > answer + spec.false_negative_margin
        left_out.scatter_(1, target, False)
        alone += (left_out.sum(1) == len(asked) - 1).sum()
        similar = similar.masked_fill_(left_out, -torch.inf).div_(spec.temperature)
        hits += (similar.argmax(1, keepdim=True) == target).sum()
        normalizer = similar.logsumexp(1, keepdim=True)
        loss += (normalizer - similar.gather(1, target)).sum()
        slope = similar.sub_(normalizer).exp_()
        slope = slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0)).div_(spec.temperature)
        by_asking[rows] = slope @ asked
        by_asked += slope.T @ here
    if back:
        gradient[: how.queries] += by_asked
        gradient[how.queries :].index_add_(0, answers, by_asking)
    else:
        gradient[: how.queries] += by_asking
        gradient[how.queries :] += by_asked
    return Contrasted(loss, gradient, hits, alone)


def _excluded(how: Contrast, targets: torch.Tensor, *, back: bool) -> torch.Tensor:
    """(asking, asked) that are not told from each other. Back from answers only what concerns answers counts."""
    if not back:
        return how.excluded
    query, passage = how.excluded.unbind(1)
    concerns = passage % how.group == 0
    return torch.stack([passage[concerns] // how.group, query[concerns]], dim=1)


def _left_out(rows: torch.Tensor, columns: int, how: Contrast, spec: Gritlm, *, back: bool) -> torch.Tensor:
    """bool[rows, columns]: what `spec.negatives` leaves out."""
    of = torch.arange(columns, device=rows.device) // (1 if back else how.group)
    if spec.negatives == "hard":
        return of[None, :] != rows[:, None]
    if spec.negatives == "local":
        return of[None, :] // how.block != rows[:, None] // how.block
    return torch.zeros(len(rows), columns, dtype=torch.bool, device=rows.device)
