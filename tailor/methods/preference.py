"""Losses of preference pairs as functions of log-probabilities. W is the number of pairs, D / 2.

sigmoid   DPO, Rafailov et al. 2023, arXiv 2305.18290; with label smoothing conservative DPO (Mitchell 2023)
robust    Ray Chowdhury et al. 2024, arXiv 2403.00409: unbiased under swapped labels
ipo       Azar et al. 2023, arXiv 2310.12036; log-probabilities are means over an answer's tokens
hinge     SLiC-HF, Zhao et al. 2023, arXiv 2305.10425, on the ratios to a reference (RSO, arXiv 2309.06657)
simpo     Meng et al. 2024, arXiv 2405.14734; without a reference, with a target margin `gamma`
orpo      Hong et al. 2024, arXiv 2403.07691; adds the next-token loss of the chosen answer, times `sft_weight`
cpo       Xu et al. 2024, arXiv 2401.08417; adds the next-token loss of the chosen answer, times `sft_weight`
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from tailor.spec.methods.dpo import REFERENCE_FREE, Dpo

AVERAGED = ("ipo", "simpo", "orpo")
"""Losses that take the mean log-probability per token of an answer. The others take the sum over its tokens."""


@dataclass(frozen=True)
class Answers:
    """Either the chosen or the rejected answers of all pairs.

    policy, reference: float32[W], log-probabilities summed over an answer's tokens. The reference's are 0 for a loss
    without a reference model. tokens: int64[W], number of tokens in each sum.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    def score(self, loss: str) -> torch.Tensor:
        """float32[W], the value that the loss compares: log-ratio of policy to reference, or log-probability without one."""
        score = self.policy if loss in REFERENCE_FREE else self.policy - self.reference  # [W]
        return score / self.tokens if loss in AVERAGED else score


def pair_losses(spec: Dpo, chosen: Answers, rejected: Answers) -> torch.Tensor:
    """Compute the loss of each pair, float32[W]. It includes the next-token loss of the chosen answer if that has a weight."""
    losses = _losses(spec, chosen.score(spec.loss), rejected.score(spec.loss))  # [W]
    if weight := sft_weight(spec):
        losses = losses - weight * chosen.policy / chosen.tokens
    return losses


def sft_weight(spec: Dpo) -> float:
    """Weight of the next-token loss of the chosen answers. By default 1 for orpo and cpo, as in their papers, and else 0."""
    if spec.sft_weight is not None:
        return spec.sft_weight
    return 1.0 if spec.loss in ("orpo", "cpo") else 0.0


def _losses(spec: Dpo, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    beta, swapped = spec.beta, spec.label_smoothing  # swapped: assumed probability that a label is wrong
    margin = beta * (chosen - rejected)  # [W]
    match spec.loss:
        case "sigmoid" | "cpo":
            return -(1 - swapped) * logsigmoid(margin) - swapped * logsigmoid(-margin)
        case "simpo":
            margin = margin - spec.gamma
            return -(1 - swapped) * logsigmoid(margin) - swapped * logsigmoid(-margin)
        case "robust":
            as_labeled, flipped = logsigmoid(margin), logsigmoid(-margin)  # [W]
            return (swapped * flipped - (1 - swapped) * as_labeled) / (1 - 2 * swapped)
        case "ipo":
            return (chosen - rejected - 1 / (2 * beta)) ** 2
        case "hinge":
            return torch.relu(1 - margin)
        case "orpo":
            # [W], log of odds(chosen) / odds(rejected); odds(p) = p / (1 - p)
            log_odds = chosen - rejected - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
            return -beta * logsigmoid(log_odds)


def _log_one_minus_exp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0, accurate near both ends (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").

    x = 0 would give -inf, so it is replaced by the largest float below 0.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)  # Maechler's threshold between the two formulas
    # torch.where computes the gradient of both branches, and nan × 0 is nan: the unused branch gets a safe number.
    half = torch.full_like(x, -math.log(2))
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, half))),
        torch.log1p(-torch.exp(torch.where(near, half, x))),
    )
