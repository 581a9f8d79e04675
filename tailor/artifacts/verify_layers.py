"""Verifies a merge by sampled layers, which needs the memory of one layer."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from tailor.artifacts.base_model import Structure
from tailor.artifacts.inputs import Source
from tailor.artifacts.lora import LoraAdapter
from tailor.artifacts.saved_adapter import SavedAdapter
from tailor.artifacts.tensors import Reader
from tailor.artifacts.trained_layer import trained_layer
from tailor.artifacts.verify import LAYERS, Figures
from tailor.errors import ModelError
from tailor.models import own_code

INPUTS = 64


def by_layers(
    folder: Path, source: Source, adapter: SavedAdapter, names: dict[str, str], device: torch.device
) -> Figures:
    """Compare only sampled layers: the output of the merged weight with that of PEFT's layer.

    Needs the memory of one layer. names: stored name of each weight that has an update. ModelError for other kinds than LoRA.
    """
    if not isinstance(adapter, LoraAdapter):
        raise ModelError(
            f"{adapter.kind.label} adapters cannot be verified by layers, only by logits",
            hint="remove --verify layers",
        )
    modules = sorted(adapter.updates)
    step = max(1, len(modules) // LAYERS)
    chosen = modules[::step][:LAYERS]
    errors = [output_error(folder, source, adapter, module, names, device) for module in chosen]
    finite = all(math.isfinite(error) for error in errors)
    return Figures(
        check="layers",
        rows=f"{len(chosen)} of {len(modules)} layers",
        layer_error=max(errors) if finite else math.inf,
    )


@torch.no_grad()
def output_error(
    folder: Path,
    source: Source,
    adapter: LoraAdapter,
    module: str,
    names: dict[str, str],
    device: torch.device,
) -> float:
    """The relative error ‖merged − trained‖ / ‖trained‖ of a linear layer's output for random inputs.

    PEFT computes the trained output. folder: the merged model. names: stored name of each weight that has an update.
    """
    update = adapter.updates[module]
    name = module if update.experts else f"{module}.weight"
    structure = Structure.of(source.weights, trust_remote_code=own_code.granted(source.spec))
    with Reader.of_model(source.weights) as reader:
        weight = reader.read(names[name]) if name in names else structure.read(name, reader)
    with Reader.of_model(folder) as reader:
        stored = name if name in reader else names.get(name)
        merged = (reader.read(stored) if stored else structure.read(name, reader)).float()
    if name in adapter.replaced:
        weight = adapter.reader.read(adapter.replaced[name])
    if update.experts is None and adapter.product(module).shape != weight.shape:
        weight, merged = weight.T.contiguous(), merged.T  # stored as [in, out] (Conv1D), or an embedding
    layer = trained_layer(source.base_record, adapter, module, weight, device)
    oriented = merged.transpose(-2, -1) if update.transposed else merged  # [out, in] or [E, out, in]
    inputs = torch.randn(
        INPUTS, oriented.shape[-1], generator=torch.Generator().manual_seed(0)
    )  # [INPUTS, in]
    expected = layer(inputs.to(device)).float().cpu()  # [INPUTS, out] or [E, INPUTS, out]
    actual = inputs @ oriented.transpose(-2, -1)
    return float((actual - expected).norm() / expected.norm())
