"""A causal model with activation beacons, as the methods see it: documents are read window by window."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tailor.models import probe
from tailor.models.beacon.modules import Beacons, beacons_of
from tailor.models.beacon.windows import Memory
from tailor.models.causal import CausalModel
from tailor.models.documents import TokenBatch
from tailor.plan import beacon


def beacon_model(network: Any, *, seed: int = 0) -> BeaconModel:
    """A transformers model that has beacons, with its head proven to stand apart."""
    device = next(network.parameters()).device
    assert probe.head_is_separate(CausalModel(network, layout="rows"), device)
    return BeaconModel(network, seed=seed)


class BeaconModel(CausalModel):
    """One document a row. Documents of one number of windows go through the model together, whatever the micro-batch.

    seed: of the ratios that training steps draw.
    """

    def __init__(self, network: Any, *, seed: int = 0) -> None:
        super().__init__(network, layout="rows")
        self.seed = seed

    @property
    def beacons(self) -> Beacons:
        """The network's beacons."""
        found = beacons_of(self.base)
        assert found is not None
        return found

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Last hidden states, [B, T, H]. The loss flows back through all windows of a document."""
        if self.beacons.off:
            return super().hidden(batch)
        assert len(batch.supervised) == len(batch.input_ids), "a row holds one document"
        window, limit = self.beacons.spec.window, self.beacons.limit
        lengths: list[int] = (batch.rows >= 0).sum(dim=1).tolist()
        counts = [beacon.windows_of(length, window) for length in lengths]
        parts: list[torch.Tensor] = []
        places: list[int] = []
        learns = False
        for windows in sorted(set(counts)):
            rows = [row for row, count in enumerate(counts) if count == windows]
            ids = batch.input_ids[rows, : max(lengths[row] for row in rows)]
            given = beacon.ratios(self.beacons.spec, windows, limit, seed=self.seed, step=batch.step)
            learns = learns or any(given)
            read = self.read(ids, given)
            parts.append(functional.pad(read, (0, 0, 0, batch.input_ids.shape[1] - read.shape[1])))
            places += rows
        hidden = torch.cat(parts)[sorted(range(len(places)), key=places.__getitem__)]
        # Not asked of `requires_grad`: activation checkpointing sets it without a way to any weight.
        return hidden if learns or not torch.is_grad_enabled() else self._with_all_weights(hidden)

    def read(self, ids: torch.Tensor, ratios: tuple[int, ...]) -> torch.Tensor:
        """Last hidden states of documents of one number of windows. ids: int64[B, T]; ratios: of all windows but the last."""
        window, memory = self.beacons.spec.window, Memory()
        parts = []
        for at, ratio in enumerate(ratios):
            part, memory = self.beacons.read_window(ids[:, at * window : (at + 1) * window], memory, ratio)
            parts.append(part)
        return torch.cat([*parts, self.beacons.read_last_window(ids[:, len(ratios) * window :], memory)], dim=1)

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """Logits, [B, T, V]."""
        logits: torch.Tensor = self.head(self.hidden(batch))
        return logits

    def _outputs(self, batch: TokenBatch, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self.hidden(batch))

    def _with_all_weights(self, hidden: torch.Tensor) -> torch.Tensor:
        """Data parallelism waits for the gradient of every weight, also where no document had a beacon."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        nothing = sum((parameter.sum() for parameter in trained), start=torch.zeros((), device=hidden.device))
        return hidden + (0.0 * nothing).to(hidden.dtype)
