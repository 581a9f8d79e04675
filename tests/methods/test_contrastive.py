"""The contrastive loss and its gradient, against autograd over the plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tailor.methods import contrastive
from tailor.methods.contrastive import ContrastiveBatch, contrastive_loss, share_of
from tailor.spec.methods.gritlm import Gritlm

QUERIES = 7
NOTHING = torch.zeros(0, 2, dtype=torch.int64)


def spec(**keys: Any) -> Gritlm:
    return Gritlm(name="gritlm", temperature=0.1, **keys)


def plain(vectors: torch.Tensor, how: ContrastiveBatch, keys: Gritlm) -> torch.Tensor:
    """The loss of each query by the formula, float32[queries]."""
    losses = []
    for length in [*keys.matryoshka, vectors.shape[1]]:
        unit = normalize(vectors[:, :length], dim=-1)
        queries, passages = unit[: how.queries], unit[how.queries :]
        scores = queries @ passages.T
        for query in range(how.queries):
            for passage in range(len(passages)):
                owner, answer = passage // how.group, passage == query * how.group
                out = [query, passage] in how.excluded.tolist()
                out |= keys.negatives == "hard" and owner != query
                out |= keys.negatives == "local" and owner // how.block != query // how.block
                margin = keys.false_negative_margin
                out |= margin is not None and bool(
                    scores[query, passage] > scores[query, query * how.group] + margin
                )
                if out and not answer:
                    scores[query, passage] = -torch.inf
        targets = torch.arange(how.queries) * how.group
        both = cross_entropy(scores / keys.temperature, targets, reduction="none")
        if keys.symmetric:
            back = cross_entropy(
                scores[:, targets].T / keys.temperature, torch.arange(how.queries), reduction="none"
            )
            both = (both + back) / 2
        losses.append(both)
    return torch.stack(losses).mean(0)


@pytest.mark.parametrize("tile", [1, 2**20])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"group_size": 1},
        {"group_size": 3, "negatives": "hard"},
        {"negatives": "local"},
        {"symmetric": True},
        {"symmetric": True, "negatives": "local", "group_size": 1},
        {"matryoshka": [2, 5]},
        {"false_negative_margin": 0.05},
    ],
    ids=str,
)
def test_loss_and_gradient_by_the_formula(
    keys: dict[str, Any], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "TILE_BYTES", tile)
    own = spec(**keys)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(QUERIES * (1 + own.group_size), 8, generator=generator, requires_grad=True)
    how = ContrastiveBatch(QUERIES, own.group_size, torch.tensor([[0, own.group_size], [3, 0]]), block=4)
    expected = plain(vectors, how, own)
    expected.sum().backward()
    found = contrastive_loss(vectors, how, own, range(QUERIES))
    assert torch.allclose(found.loss, expected.sum(), rtol=1e-5)
    assert vectors.grad is not None
    assert float((found.gradient - vectors.grad).norm() / vectors.grad.norm()) < 1e-5
    shares = [contrastive_loss(vectors, how, own, share_of(QUERIES, rank, 3)) for rank in range(3)]
    assert torch.allclose(sum(share.loss for share in shares), found.loss, rtol=1e-5)
    assert torch.allclose(sum(share.gradient for share in shares), found.gradient, atol=1e-5)
    assert sum(int(share.hits) for share in shares) == int(found.hits)
    assert sum(int(share.without_negatives) for share in shares) == int(found.without_negatives)


def test_queries_without_negatives_are_counted() -> None:
    """Those of which every other passage is left out; their loss is 0."""
    vectors = torch.randn(QUERIES * 2, 8, generator=torch.Generator().manual_seed(0))

    def found(excluded: list[list[int]]) -> contrastive.ContrastiveSum:
        how = ContrastiveBatch(
            QUERIES, 1, torch.tensor(excluded, dtype=torch.int64).reshape(-1, 2), block=QUERIES
        )
        return contrastive_loss(vectors, how, spec(group_size=1), range(QUERIES))

    others = [[query, passage] for query in range(QUERIES) for passage in range(QUERIES) if query != passage]
    assert int(found([]).without_negatives) == 0
    assert int(found(others[:-1]).without_negatives) == QUERIES - 1
    assert int(found(others).without_negatives) == QUERIES
    assert float(found(others).loss) == 0.0 < float(found(others[:-1]).loss)


def test_every_key_changes_the_loss() -> None:
    """The control of the table above: no two of its cases are the same loss."""
    vectors = torch.randn(QUERIES * 3, 8, generator=torch.Generator().manual_seed(0))
    cases: list[tuple[dict[str, Any], torch.Tensor]] = [
        ({}, NOTHING),
        ({}, torch.tensor([[0, 2], [3, 0]])),
        ({"negatives": "hard"}, NOTHING),
        ({"negatives": "local"}, NOTHING),
        ({"symmetric": True}, NOTHING),
        ({"matryoshka": [2, 5]}, NOTHING),
        ({"false_negative_margin": 0.05}, NOTHING),
        ({"normalize": False}, NOTHING),
    ]
    losses = [
        float(
            contrastive_loss(
                vectors, ContrastiveBatch(QUERIES, 2, pairs, 4), spec(**keys), range(QUERIES)
            ).loss
        )
        for keys, pairs in cases
    ]
    assert len({round(loss, 3) for loss in losses}) == len(cases)


def test_large_similarities_stay_finite() -> None:
    vectors = 1e3 * torch.randn(QUERIES * 3, 8, generator=torch.Generator().manual_seed(0))
    found = contrastive_loss(
        vectors, ContrastiveBatch(QUERIES, 2, NOTHING, 4), spec(normalize=False), range(QUERIES)
    )
    assert torch.isfinite(found.loss)
    assert torch.isfinite(found.gradient).all()


@pytest.mark.parametrize(("negatives", "moves"), [("global", True), ("local", False)])
def test_a_passage_of_another_worker_is_a_negative_only_with_global_negatives(
    negatives: str, moves: bool
) -> None:
    """Worker 0 of two scores its own queries; the passages of worker 1's queries are negatives of it, or are not."""
    own = spec(negatives=negatives)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6 * (1 + own.group_size), 8, generator=generator)
    how = ContrastiveBatch(6, own.group_size, NOTHING, block=3)
    first, second = share_of(6, 0, 2), share_of(6, 1, 2)
    before = [contrastive_loss(vectors, how, own, share) for share in (first, second)]
    vectors[6 + second.start * own.group_size] *= -1.0  # an answer of worker 1
    after = [contrastive_loss(vectors, how, own, share) for share in (first, second)]
    assert (float((after[0].loss - before[0].loss).abs()) > 1e-3) == moves
    assert (float((after[0].gradient - before[0].gradient).abs().max()) > 1e-4) == moves
    assert float((after[1].loss - before[1].loss).abs()) > 1e-3
