"""Losses of preference pairs, as functions of log-probabilities.

sigmoid   DPO, Rafailov et al. 2023, arXiv 2305.18290; with label smoothing conservative DPO (Mitchell 2023)
robust    Ray Chowdhury et al. 2024, arXiv 2403.00409: unbiased under swapped labels
ipo       Azar et al. 2023, arXiv 2310.12036; log-probabilities are means over an answer's tokens
hinge     SLiC-HF, Zhao et al. 2023, arXiv 2305.10425, on the ratios to a reference (RSO, arXiv 2309.06657)
simpo     Meng et al. 2024, arXiv 2405.14734
orpo      Hong et al. 2024, arXiv 2403.07691; the loss of the chosen answer is `sft_weight`
cpo       Xu et al. 2024, arXiv 2401.08417; the same
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from tailor.spec.methods.dpo import REFERENCE_FREE, Dpo

AVERAGED = ("ipo", "simpo", "orpo")
"""Losses of log-probabilities that are means over an answer's tokens, not sums."""


@dataclass(frozen=True)
class Answers:
    """One answer of each pair.

    policy, reference: float32[P], summed log-probabilities; the reference's is 0 where the loss has none.
    tokens: int64[P], how many tokens each sum is over.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    def score(self, loss: str) -> torch.Tensor:
        """What the loss compares: the log-ratio to the reference, or the log-probability without one."""
        score = self.policy if loss in REFERENCE_FREE else self.policy - self.reference
        return score / self.tokens if loss in AVERAGED else score


def pair_losses(spec: Dpo, chosen: Answers, rejected: Answers) -> torch.Tensor:
    """The loss of each pair, float32[P], with the chosen answers' own loss where it has a weight."""
    left, right = chosen.score(spec.loss), rejected.score(spec.loss)
    losses = _losses(spec, left, right)
    if weight := sft_weight(spec):
        losses = losses - weight * chosen.policy / chosen.tokens
    return losses


def sft_weight(spec: Dpo) -> float:
    """Weight of the chosen answers' own loss."""
    if spec.sft_weight is not None:
        return spec.sft_weight
    return 1.0 if spec.loss in ("orpo", "cpo") else 0.0


def _losses(spec: Dpo, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    beta, swapped = spec.beta, spec.label_smoothing
    margin = beta * (chosen - rejected)
    match spec.loss:
        case "sigmoid" | "cpo":
            return -(1 - swapped) * logsigmoid(margin) - swapped * logsigmoid(-margin)
        case "simpo":
            margin = margin - spec.gamma
            return -(1 - swapped) * logsigmoid(margin) - swapped * logsigmoid(-margin)
        case "robust":
            straight, crossed = logsigmoid(margin), logsigmoid(-margin)
            return (swapped * crossed - (1 - swapped) * straight) / (1 - 2 * swapped)
        case "ipo":
            return (chosen - rejected - 1 / (2 * beta)) ** 2
        case "hinge":
            return torch.relu(1 - margin)
        case "orpo":
            log_odds = chosen - rejected - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
            return -beta * logsigmoid(log_odds)


def _log_one_minus_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0, exact near both ends (Maechler 2012); x = 0 is taken as the float below it."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    # Each branch sees a harmless number where the other is taken, for its gradient is computed too.
    half = torch.full_like(x, -math.log(2))
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, half))),
        torch.log1p(-torch.exp(torch.where(near, half, x))),
    )
