"""Trained beacons in a folder of their own: `beacon.json` has the settings, `beacon.safetensors` the weights.

The base is not among them and does not change; `base.json` beside them says which one it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from tailor.errors import StoreError
from tailor.layout import BEACON_CONFIG, BEACON_WEIGHTS
from tailor.models.beacon.modules import add_beacons, beacons_of
from tailor.spec.model import Beacon


def trained(network: Any) -> dict[str, nn.Parameter]:
    """The beacons' weights of a transformers model, by their names in it."""
    return {
        name: weight
        for name, weight in network.named_parameters()
        if name.startswith("beacons.") or ".own." in name
    }


def write(folder: Path, network: Any) -> None:
    """Write a network's beacons, float32."""
    from safetensors.torch import save_file

    beacons = beacons_of(network)
    assert beacons is not None
    weights = {name: weight.detach().float().cpu().contiguous() for name, weight in trained(network).items()}
    save_file(weights, folder / BEACON_WEIGHTS)
    (folder / BEACON_CONFIG).write_text(json.dumps(beacons.spec.model_dump(), indent=1) + "\n")


def read_settings(folder: Path, url: str) -> Beacon:
    """The settings that beacons were trained with. StoreError. `url`: for messages."""
    try:
        return Beacon.model_validate(json.loads((folder / BEACON_CONFIG).read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise StoreError(
            f"{url}/{BEACON_CONFIG} holds no settings of beacons: {str(error).splitlines()[0]}",
            hint="bring back the file that the run wrote",
        ) from error


def load_beacons(network: Any, folder: Path, url: str) -> None:
    """Give a network the beacons in `folder`, in its own dtype, ready to answer. Raises ModelError and StoreError."""
    add_beacons(network, read_settings(folder, url))
    put_weights(network, folder, url)
    dtype = network.get_input_embeddings().weight.dtype
    for weight in trained(network).values():
        weight.data = weight.data.to(dtype)
        weight.requires_grad_(False)


@torch.no_grad()
def put_weights(network: Any, folder: Path, url: str) -> None:
    """Put the weights in `folder` into a network's beacons, whose form must be theirs. StoreError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / BEACON_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{url}/{BEACON_WEIGHTS} is no file of weights: {str(error).splitlines()[0]}",
            hint="bring back the file that the run wrote",
        ) from error
    own = trained(network)
    odd = sorted(own.keys() ^ weights.keys())
    odd += [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if odd:
        raise StoreError(
            f"the beacons at {url} have another form than this model's, for example {odd[0]}",
            hint="set projections and rank of model.beacon as they were there, and take the same base",
        )
    for name, weight in own.items():
        weight.copy_(weights[name])
