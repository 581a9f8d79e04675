"""Log-probabilities under the reference model of a preference method: the model before training, without dropout."""

from __future__ import annotations

from typing import Protocol

import torch

from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch


class Reference(Protocol):
    """Gives the log-probabilities of documents under the reference model."""

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        """Log-probability of each document's supervised tokens, summed per document: float32[D], without a graph.

        model: the model in training.
        """
        ...


class AdapterOff:
    """The model in training with its adapter turned off, i.e. the base. Needs no second model in memory."""

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        with model.inference_mode(), model.without_adapter():
            return model.log_probabilities(batch)


class Copy:
    """A frozen copy of the model, made before the first step. Doubles the memory of the weights."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        with self.model.inference_mode():
            return self.model.log_probabilities(batch)


class Precomputed:
    """Log-probabilities that were computed before training. They are read with the batch."""

    def log_probabilities(self, model: CausalModel, batch: TokenBatch) -> torch.Tensor:
        assert batch.reference is not None
        return batch.reference
