"""Where the log-probabilities of a reference model come from: the model that training started from, without dropout."""

from __future__ import annotations

from typing import Protocol

import torch

from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch


class Reference(Protocol):
    """A reference model, or what is known of it."""

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        """Log-probability of each document's supervised tokens together, float32[D], without a graph.

        model: the one that is trained.
        """
        ...


class AdapterOff:
    """The base under the adapter."""

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        with model.inference_mode(), model.without_adapter():
            return model.log_probabilities(batch)


class Copy:
    """A frozen copy, made before the first step."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        with self.model.inference_mode():
            return self.model.log_probabilities(batch)


class Precomputed:
    """Numbers that were computed before and come with the batch."""

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        assert batch.reference is not None
        return batch.reference
