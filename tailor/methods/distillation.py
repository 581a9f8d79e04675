"""Distillation of a teacher's scores into the scores or similarities of a query with the passages of its own group.

    kl          KL(p ‖ q) with p = softmax(t / teacher_temperature) and q = softmax(s), as in FlagEmbedding's knowledge
                distillation and sentence-transformers' DistillKLDivLoss
    margin_mse  mean over the negatives j of ((s_0 - s_j) - (t_0 - t_j))² (Hofstätter et al. 2020, arXiv 2010.02666), as in
                sentence-transformers' MarginMSELoss

t: the teacher's scores of the group; s: similarity / temperature, as in the contrastive loss, or a reranker's scores. Passage 0 is the answer.
Shapes: see `tailor.models`; R queries, G passages per query, N = Q + P vectors of E numbers.
"""

from __future__ import annotations

import torch
from torch.nn.functional import kl_div, log_softmax

from tailor.spec.methods.gritlm import Gritlm
from tailor.spec.methods.rerank import Rerank


def distillation_loss(
    embeddings: torch.Tensor, scores: torch.Tensor, spec: Gritlm, share: range
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss summed over the queries in `share`, and its gradient with respect to the embeddings, float32[N, E].

    embeddings: float32[N, E], all queries first. scores: float32[Q, G], the teacher's.
    """
    queries, group = scores.shape
    own = slice(share.start, share.stop)
    with torch.enable_grad():
        full = embeddings.detach().requires_grad_()  # [N, E]
        asked = full[:queries][own]  # [R, E]
        passages = full[queries:].reshape(queries, group, -1)[own]  # [R, G, E]
        similarity = torch.einsum("re,rge->rg", asked, passages) / spec.temperature  # [R, G]
        loss = group_loss(similarity, scores[own], spec)
        loss.backward()
    assert full.grad is not None
    return loss.detach(), full.grad


def group_loss(student: torch.Tensor, teacher: torch.Tensor, spec: Gritlm | Rerank) -> torch.Tensor:
    """The loss summed over R queries, with a graph. student, teacher: float32[R, G], the scores of each group."""
    if spec.distillation == "kl":
        target = log_softmax(teacher / spec.teacher_temperature, dim=1)  # [R, G]
        return kl_div(log_softmax(student, dim=1), target, reduction="sum", log_target=True)
    margins = student[:, :1] - student[:, 1:]  # [R, G - 1]
    error = margins - (teacher[:, :1] - teacher[:, 1:])  # [R, G - 1]
    return error.square().mean(1).sum()
