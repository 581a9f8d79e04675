"""The tiled loss is the plain loss, with less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from tailor.models.loss import (
    document_cross_entropy,
    summed_cross_entropy,
    summed_cross_entropy_and_hits,
    summed_loss,
)
from tailor.spec.methods.base import LossTerms

ROWS, WIDTH, VOCABULARY = 50, 16, 300


def make(bias: bool = False) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    return hidden, nn.Linear(WIDTH, VOCABULARY, bias=bias), torch.randint(0, VOCABULARY, (ROWS,))


@pytest.mark.parametrize("bias", [False, True], ids=["fused", "recomputed"])
@pytest.mark.parametrize("rows_a_tile", [1, 7, 1000])
def test_same_loss_and_gradients(bias: bool, rows_a_tile: int) -> None:
    hidden, head, targets = make(bias)
    plain = functional.cross_entropy(head(hidden), targets, reduction="sum")
    expected = torch.autograd.grad(plain, [hidden, *head.parameters()])
    tiled = summed_cross_entropy(hidden, head, targets, tile_bytes=4 * VOCABULARY * rows_a_tile)
    found = torch.autograd.grad(tiled, [hidden, *head.parameters()])
    assert float(tiled) == pytest.approx(float(plain), rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_control_a_shifted_target_changes_the_loss() -> None:
    hidden, head, targets = make()
    assert (
        abs(
            float(
                summed_cross_entropy(hidden, head, targets.roll(1))
                - summed_cross_entropy(hidden, head, targets)
            )
        )
        > 1
    )


def by_document(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(head(hidden), targets, reduction="none")
    return torch.stack([losses[number == DOCUMENT].sum() for number in range(4)])


DOCUMENT = torch.tensor([0] * 20 + [1] * 3 + [3] * 27)
"""Of each row. The third document has no target."""


@pytest.mark.parametrize("bias", [False, True], ids=["fused", "recomputed"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("rows_a_tile", [1, 7, 1000])
def test_each_document_has_its_loss_and_takes_its_own_gradient(
    bias: bool, trained: bool, rows_a_tile: int
) -> None:
    hidden, head, targets = make(bias)
    head.requires_grad_(trained)
    weights = torch.tensor([0.3, -2.0, 5.0, 1.0])
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    plain = by_document(hidden, head, targets)
    expected = torch.autograd.grad((weights * plain).sum(), wanted)
    tile_bytes = 4 * VOCABULARY * rows_a_tile
    tiled = document_cross_entropy(hidden, head, targets, DOCUMENT, 4, tile_bytes=tile_bytes)
    assert tiled.tolist() == pytest.approx(plain.tolist(), rel=1e-6)
    assert tiled[2] == 0
    found = torch.autograd.grad((weights * tiled).sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    # Control: one number for all documents is another gradient.
    same = document_cross_entropy(hidden, head, targets, DOCUMENT, 4, tile_bytes=tile_bytes)
    for other, theirs in zip(torch.autograd.grad(same.sum(), wanted), expected, strict=True):
        assert (other - theirs).norm() > 0.1 * theirs.norm()


def test_no_target_gives_every_document_zero_with_a_graph() -> None:
    hidden, head, _ = make()
    nothing = torch.zeros(0, dtype=torch.int64)
    losses = document_cross_entropy(hidden[:0], head, nothing, nothing, 3)
    (losses * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert float(head.weight.grad.abs().sum()) == 0


def test_a_frozen_head_and_a_scaled_loss() -> None:
    hidden, head, targets = make()
    head.requires_grad_(False)
    (expected,) = torch.autograd.grad(
        functional.cross_entropy(head(hidden), targets, reduction="sum") / 7, hidden
    )
    (found,) = torch.autograd.grad(summed_cross_entropy(hidden, head, targets, tile_bytes=1) / 7, hidden)
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_no_target_gives_zero_with_a_graph() -> None:
    hidden, head, _ = make()
    loss = summed_cross_entropy(hidden[:0], head, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss) == 0
    assert float(hidden.grad.abs().sum()) == 0
    assert float(head.weight.grad.abs().sum()) == 0


def test_bf16_hidden_states_have_a_float32_loss() -> None:
    hidden, head, targets = make()
    exact = functional.cross_entropy(head(hidden), targets, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = summed_cross_entropy(hidden.bfloat16(), head, targets)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=5e-3)


@pytest.mark.parametrize("documents", [1, 4])
def test_saved_bytes_do_not_grow_with_the_vocabulary(documents: int) -> None:
    def saved(tile_bytes: int | None) -> int:
        hidden = torch.randn(512, 16, requires_grad=True)
        head = nn.Linear(16, 4096, bias=False).requires_grad_(False)
        targets = torch.randint(0, 4096, (512,))
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            if tile_bytes is None:
                functional.cross_entropy(head(hidden), targets, reduction="sum")
            else:
                document = torch.arange(512) % documents
                document_cross_entropy(hidden, head, targets, document, documents, tile_bytes=tile_bytes)
        return total

    assert saved(2**16) < 2**17 < 2**22 < saved(None)


def test_hits_are_the_targets_with_the_largest_logit() -> None:
    hidden, head, targets = make()
    loss, hits = summed_cross_entropy_and_hits(hidden, head, targets, tile_bytes=4 * VOCABULARY * 7)
    logits = head(hidden)
    assert int(hits) == int((logits.argmax(-1) == targets).sum())
    assert float(loss) == pytest.approx(
        float(functional.cross_entropy(logits, targets, reduction="sum")), rel=1e-6
    )


def with_terms(logits: torch.Tensor, targets: torch.Tensor, terms: LossTerms) -> torch.Tensor:
    """The definitions, by PyTorch's own functions."""
    smooth = functional.cross_entropy(logits, targets, label_smoothing=terms.label_smoothing, reduction="sum")
    return smooth + terms.z_loss * (logits.logsumexp(-1) ** 2).sum()


@pytest.mark.parametrize("bias", [False, True], ids=["fused", "recomputed"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("rows_a_tile", [7, 1000])
@pytest.mark.parametrize("terms", [LossTerms(0.1, 0.0), LossTerms(0.0, 1e-2), LossTerms(0.3, 1e-2)])
def test_terms_have_their_loss_and_gradients(
    bias: bool, trained: bool, rows_a_tile: int, terms: LossTerms
) -> None:
    hidden, head, targets = make(bias)
    head.requires_grad_(trained)
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    plain = with_terms(head(hidden), targets, terms)
    expected = torch.autograd.grad(plain / 7, wanted)
    tiled, parts = summed_loss(hidden, head, targets, terms, tile_bytes=4 * VOCABULARY * rows_a_tile)
    found = torch.autograd.grad(tiled / 7, wanted)
    assert float(tiled) == pytest.approx(float(plain), rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    logits = head(hidden)
    assert float(parts["cross_entropy"]) == pytest.approx(
        float(functional.cross_entropy(logits, targets, reduction="sum")), rel=1e-6
    )
    assert float(parts["z_loss"]) == pytest.approx(float((logits.logsumexp(-1) ** 2).sum()), rel=1e-6)
    # Control: the cross-entropy alone has another loss and another gradient.
    control = summed_cross_entropy(hidden, head, targets)
    assert abs(float(control - plain)) > 1e-4 * float(plain)
    for other, theirs in zip(torch.autograd.grad(control / 7, wanted), expected, strict=True):
        assert (other - theirs).norm() > 1e-2 * theirs.norm()


def test_smoothing_is_that_of_transformers() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    hidden, head, targets = make()
    logits = head(hidden)
    theirs = LabelSmoother(epsilon=0.1)({"logits": logits[None]}, targets[None])  # a mean
    ours, _ = summed_loss(hidden, head, targets, LossTerms(0.1))
    assert float(ours) / ROWS == pytest.approx(float(theirs), rel=1e-6)


def test_without_terms_nothing_changes_and_without_targets_the_parts_are_zero() -> None:
    hidden, head, targets = make()
    loss, parts = summed_loss(hidden, head, targets, LossTerms())
    assert torch.equal(loss, summed_cross_entropy(hidden, head, targets))
    assert parts == {}
    loss, parts = summed_loss(hidden[:0], head, targets[:0], LossTerms(0.1, 0.1))
    loss.backward()
    assert (float(loss), {name: float(part) for name, part in parts.items()}) == (
        0,
        {"cross_entropy": 0, "z_loss": 0},
    )
    assert float(head.weight.grad.abs().sum()) == 0
