"""Each loss is its published formula, written out here a second time, number by number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tailor.methods import kto
from tailor.methods.dpo import Dpo
from tailor.methods.kto import answer_losses, kl_document, kl_partners
from tailor.methods.preference import Answers, pair_losses
from tailor.models.collator import Collator
from tailor.spec.methods import dpo as dpo_spec
from tailor.spec.methods import kto as kto_spec
from tests.helpers.preference_stores import rated, write_groups

BETA, EPSILON, GAMMA = 0.3, 0.1, 0.7
PAIRS = 64


def made(seed: int = 0) -> tuple[Answers, Answers]:
    """Log-probabilities of answers of 1 to 20 tokens, around -2 a token, under two models."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> Answers:
        tokens = torch.randint(1, 20, (PAIRS,), generator=generator)
        policy, reference = (-(0.05 + 4 * torch.rand(PAIRS, generator=generator)) * tokens for _ in range(2))
        return Answers(policy, reference, tokens)

    return side(), side()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def odds(log_probability: float) -> float:
    return math.exp(log_probability) / (1 - math.exp(log_probability))


def published(loss: str, w: float, w_ref: float, w_n: int, l: float, l_ref: float, l_n: int) -> float:  # noqa: E741
    """The loss of one pair: w, l are log-probabilities of the chosen and the rejected answer, n their tokens."""
    ratio = (w - w_ref) - (l - l_ref)
    match loss:
        case "sigmoid":  # DPO, equation 7
            return -log_sigmoid(BETA * ratio)
        case "conservative":  # cDPO, equation 3
            return -(1 - EPSILON) * log_sigmoid(BETA * ratio) - EPSILON * log_sigmoid(-BETA * ratio)
        case "robust":  # robust DPO, equation 12
            straight, crossed = -log_sigmoid(BETA * ratio), -log_sigmoid(-BETA * ratio)
            return ((1 - EPSILON) * straight - EPSILON * crossed) / (1 - 2 * EPSILON)
        case "ipo":  # equation 17, over tokens' means
            return ((w - w_ref) / w_n - (l - l_ref) / l_n - 1 / (2 * BETA)) ** 2
        case "hinge":  # RSO, equation 10
            return max(0.0, 1 - BETA * ratio)
        case "simpo":  # equation 6
            return -log_sigmoid(BETA / w_n * w - BETA / l_n * l - GAMMA)
        case "orpo":  # equations 6 and 7: the chosen answer's own loss, and the odds ratio
            return -w / w_n - BETA * log_sigmoid(math.log(odds(w / w_n) / odds(l / l_n)))
        case "cpo":  # equation 5: the chosen answer's own loss, and the preference
            return -w / w_n - log_sigmoid(BETA * (w - l))
    raise AssertionError(loss)


CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "conservative": {"loss": "sigmoid", "label_smoothing": EPSILON},
    "robust": {"loss": "robust", "label_smoothing": EPSILON},
    "ipo": {"loss": "ipo"},
    "hinge": {"loss": "hinge"},
    "simpo": {"loss": "simpo", "gamma": GAMMA},
    "orpo": {"loss": "orpo"},
    "cpo": {"loss": "cpo"},
}


def by_hand(loss: str, chosen: Answers, rejected: Answers) -> torch.Tensor:
    numbers = zip(
        *(t.tolist() for side in (chosen, rejected) for t in (side.policy, side.reference, side.tokens)),
        strict=True,
    )
    return torch.tensor([published(loss, *pair) for pair in numbers])


@pytest.mark.parametrize("loss", CASES)
def test_every_loss_is_its_published_formula(loss: str) -> None:
    chosen, rejected = made()
    found = pair_losses(dpo_spec.Dpo(name="dpo", beta=BETA, **CASES[loss]), chosen, rejected)
    assert torch.allclose(found, by_hand(loss, chosen, rejected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", CASES)
def test_control_swapped_answers_have_another_loss(loss: str) -> None:
    chosen, rejected = made()
    found = pair_losses(dpo_spec.Dpo(name="dpo", beta=BETA, **CASES[loss]), chosen, rejected)
    assert not torch.allclose(found, by_hand(loss, rejected, chosen), rtol=0.1, atol=0.1)


def test_no_two_losses_are_the_same() -> None:
    chosen, rejected = made()
    values = {loss: by_hand(loss, chosen, rejected).sum().item() for loss in CASES}
    assert len({round(value, 3) for value in values.values()}) == len(CASES)


def test_the_chosen_answers_own_loss_has_a_weight() -> None:
    chosen, rejected = made()
    plain, with_own = (
        pair_losses(dpo_spec.Dpo(name="dpo", sft_weight=weight), chosen, rejected) for weight in (None, 0.5)
    )
    assert torch.allclose(with_own - plain, -0.5 * chosen.policy / chosen.tokens, atol=1e-6)
    without = pair_losses(dpo_spec.Dpo(name="dpo", loss="orpo", sft_weight=0.0), chosen, rejected)
    assert torch.allclose(
        by_hand("orpo", chosen, rejected) - without * BETA / 0.1, -chosen.policy / chosen.tokens, atol=1e-5
    )


@pytest.mark.parametrize("mean", [-1e-9, 0.0, -0.6, -0.8, -80.0])
def test_odds_are_finite_at_both_ends(mean: float) -> None:
    policy = torch.tensor([mean], requires_grad=True)
    one, other = (
        Answers(policy, torch.zeros(1), torch.ones(1)),
        Answers(torch.tensor([-1.0]), *[torch.ones(1)] * 2),
    )
    for pair in ((one, other), (other, one)):
        loss = pair_losses(dpo_spec.Dpo(name="dpo", loss="orpo"), *pair).sum()
        (gradient,) = torch.autograd.grad(loss, policy)
        assert math.isfinite(loss.item())
        assert math.isfinite(gradient.item())


def test_figures_are_means_over_all_pairs() -> None:
    method = Dpo(dpo_spec.Dpo(name="dpo", beta=BETA), None)
    chosen, rejected = made()
    sums = {name: float(value) for name, value in method._statistics(chosen, rejected).items()}
    found = method.metrics({**sums, "loss": 1.0}, PAIRS)
    left, right = (BETA * (side.policy - side.reference) for side in (chosen, rejected))
    assert found == pytest.approx(
        {
            "reward_chosen": left.mean().item(),
            "reward_rejected": right.mean().item(),
            "reward_margin": (left - right).mean().item(),
            "reward_accuracy": (left > right).float().mean().item(),
        },
        abs=1e-5,
    )
    assert 0.1 < found["reward_accuracy"] < 0.9


def test_kto_is_its_published_formula() -> None:
    """Equation 8: lambda - lambda · sigmoid(± beta · (log-ratio - z0))."""
    generator = torch.Generator().manual_seed(0)
    ratio = 5 * torch.randn(PAIRS, generator=generator)
    wanted = torch.rand(PAIRS, generator=generator) < 0.5
    spec = kto_spec.Kto(name="kto", beta=BETA, desirable_weight=1.3, undesirable_weight=0.4)
    found = answer_losses(spec, ratio, wanted, 0.8)
    for loss, r, is_wanted in zip(found.tolist(), ratio.tolist(), wanted.tolist(), strict=True):
        weight, sign = (1.3, 1) if is_wanted else (0.4, -1)
        assert loss == pytest.approx(weight - weight / (1 + math.exp(-sign * BETA * (r - 0.8))), abs=1e-6)
    assert not torch.allclose(found, answer_losses(spec, ratio, wanted, 0.0), atol=1e-2)


def test_kl_partners_follow_from_the_batch_and_not_from_its_rows() -> None:
    batch = [(3, 9), (4,), (3, 7, 1)]  # a source of weight 2 may show an example twice
    found = kl_partners(batch, 20)
    assert set(found) == set(found.values()) == {1, 3, 4, 7, 9}
    assert all(prompt != answer for prompt, answer in found.items())
    assert kl_partners([(1,), (7, 9, 3), (4, 3)], 20) == found
    assert kl_partners([(19,)], 20) == {19: 0}
    neighbors = kl_partners([tuple(range(100))], 100)
    assert sum(abs(prompt - answer) == 1 for prompt, answer in neighbors.items()) < 5


def test_a_batch_is_matched_once_for_all_of_its_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation's batch is all of its rows: pairing it again for each micro-batch would take quadratic time."""
    asked: list[int] = []

    def counted(batch: Any, examples: int) -> dict[int, int]:
        asked.append(len(batch))
        return kl_partners(batch, examples)

    monkeypatch.setattr(kto, "kl_partners", counted)
    collator = Collator(write_groups(tmp_path / "tokens", rated(6)).split("train"), "rows", max_length=64)
    method = kto.Kto(kto_spec.Kto(name="kto"), None)  # type: ignore[arg-type]
    whole, other = [(at,) for at in range(6)], [(0,), (5,), (3,)]
    alone = {at: method.read(collator, whole, slice(at, at + 1)) for at in range(6)}
    assert asked == [6]
    method.read(collator, other, slice(0, 1))
    assert asked == [6, 3], "the control: another batch is paired again"
    for at, read in alone.items():
        expected = kl_document(collator.split, at, kl_partners(whole, 6)[at], 64)
        assert read.kl_batch is not None
        assert read.kl_batch.input_ids[0, : len(expected.ids)].tolist() == expected.ids.tolist()


def test_a_kl_document_is_one_prompt_and_another_answer(tmp_path) -> None:
    groups = rated(5)
    split = write_groups(tmp_path / "tokens", groups).split("train")
    (asked, border, _), (given, start, _) = groups[1][0], groups[3][0]
    document = kl_document(split, 1, 3, 64)
    assert document.ids.tolist() == [*asked[:border], *given[start:]]
    assert document.targets[document.targets >= 0].tolist() == given[start:].tolist()
    assert document.targets[border - 1] == given[start]
    short = kl_document(split, 1, 3, len(given) - start + 2)
    assert short.ids.tolist() == [*asked[border - 2 : border], *given[start:]]
    shorter = kl_document(split, 1, 3, 3)
    assert shorter.ids.tolist() == [asked[border - 1], *given[start : start + 2]]
    assert shorter.targets[shorter.targets >= 0].tolist() == given[start : start + 2].tolist()
