"""The causal model with activation beacons: hidden states of documents that are read window by window."""

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
    """Wrap a transformers model with beacons. Checks that its logits are exactly `head(hidden)`. seed: see `BeaconModel`."""
    device = next(network.parameters()).device
    assert probe.head_is_separate(CausalModel(network, layout="rows"), device)
    return BeaconModel(network, seed=seed)


class BeaconModel(CausalModel):
    """One document per row. Documents with the same number of windows go through the model together.

    seed: for the compression ratios that are drawn in training steps.
    """

    def __init__(self, network: Any, *, seed: int = 0) -> None:
        super().__init__(network, layout="rows")
        self.seed = seed

    @property
    def beacons(self) -> Beacons:
        """The network's beacons."""
        beacons = beacons_of(self.base)
        assert beacons is not None
        return beacons

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Last hidden states, [B, T, H]. Gradients flow back through all windows of a document."""
        if self.beacons.off:
            return super().hidden(batch)
        assert len(batch.supervised) == len(batch.input_ids), "a row holds one document"
        window, limit = self.beacons.spec.window, self.beacons.limit
        lengths: list[int] = (batch.token_document >= 0).sum(dim=1).tolist()  # B numbers
        counts = [beacon.windows_of(length, window) for length in lengths]
        parts: list[torch.Tensor] = []
        order: list[int] = []
        has_beacons = False
        for windows in sorted(set(counts)):
            rows = [row for row, count in enumerate(counts) if count == windows]
            ids = batch.input_ids[rows, : max(lengths[row] for row in rows)]  # int64[rows, n]
            ratios = beacon.ratios(self.beacons.spec, windows, limit, seed=self.seed, step=batch.step)
            has_beacons = has_beacons or any(ratios)
            part = self.read(ids, ratios)  # [rows, n, H]
            parts.append(
                functional.pad(part, (0, 0, 0, batch.input_ids.shape[1] - part.shape[1]))
            )  # [rows, T, H]
            order += rows
        hidden = torch.cat(parts)[sorted(range(len(order)), key=order.__getitem__)]  # [B, T, H]
        # `hidden.requires_grad` would not do: activation checkpointing sets it even if no trained weight was used.
        return hidden if has_beacons or not torch.is_grad_enabled() else self._with_all_weights(hidden)

    def read(self, ids: torch.Tensor, ratios: tuple[int, ...]) -> torch.Tensor:
        """Last hidden states [B, n, H] of documents with the same number of windows.

        ids: int64[B, n]; ratios: compression ratio of each window but the last.
        """
        window, memory = self.beacons.spec.window, Memory()
        parts = []
        for index, ratio in enumerate(ratios):
            start = index * window
            part, memory = self.beacons.read_window(ids[:, start : start + window], memory, ratio)
            parts.append(part)
        return torch.cat(
            [*parts, self.beacons.read_last_window(ids[:, len(ratios) * window :], memory)], dim=1
        )

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """Logits, [B, T, V]."""
        logits: torch.Tensor = self.head(self.hidden(batch))
        return logits

    def _outputs(self, batch: TokenBatch, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self.hidden(batch))

    def _with_all_weights(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` with 0 × every trained weight added: DDP waits for a gradient of each, also if no document had a beacon."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        total = sum((parameter.sum() for parameter in trained), start=torch.zeros((), device=hidden.device))
        return hidden + (0.0 * total).to(hidden.dtype)
