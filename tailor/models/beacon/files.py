"""The files of trained activation beacons: settings in `beacon.json`, weights in `beacon.safetensors`.

The folder does not contain the base, which is unchanged by training. Its `base.json` says which base it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailor.errors import StoreError
from tailor.layout import BEACON_CONFIG, BEACON_WEIGHTS
from tailor.models.beacon.modules import add_beacons, beacons_of
from tailor.spec.model import Beacon
from tailor.store import JsonFile

BEACON_FILE = JsonFile(
    Beacon,
    "restore the file that the training run wrote",
    required=("window", "ratios", "memory", "sink", "projections", "rank"),
)


def beacon_weights(network: Any) -> dict[str, nn.Parameter]:
    """The beacon weights of a transformers model, by name."""
    return {
        name: weight
        for name, weight in network.named_parameters()
        if name.startswith("beacons.") or ".own." in name
    }


def write(folder: Path, network: Any) -> None:
    """Write a network's beacon settings and weights (as float32) into `folder`."""
    from safetensors.torch import save_file

    beacons = beacons_of(network)
    assert beacons is not None
    weights = {
        name: weight.detach().float().cpu().contiguous() for name, weight in beacon_weights(network).items()
    }
    save_file(weights, folder / BEACON_WEIGHTS)
    (folder / BEACON_CONFIG).write_text(BEACON_FILE.text(beacons.spec.model_dump()))


def read_settings(folder: Path, url: str) -> Beacon:
    """The `model.beacon` that beacons were trained with. StoreError if the file is missing or damaged. url: for messages."""
    return Beacon.model_validate(BEACON_FILE.read_path(folder / BEACON_CONFIG, f"{url}/{BEACON_CONFIG}"))


def load_beacons(network: Any, folder: Path, url: str) -> None:
    """Add the beacons in `folder` to a network for inference, frozen and in the network's dtype.

    Raises ModelError if the network cannot have beacons, StoreError if the files are damaged. url: for messages.
    """
    add_beacons(network, read_settings(folder, url))
    load_weights(network, folder, url)
    dtype = network.get_input_embeddings().weight.dtype
    for weight in beacon_weights(network).values():
        weight.data = weight.data.to(dtype)
        weight.requires_grad_(False)


@torch.no_grad()
def load_weights(network: Any, folder: Path, url: str) -> None:
    """Copy the weights in `folder` into a network's beacons. StoreError if names or shapes differ. url: for messages."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / BEACON_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{url}/{BEACON_WEIGHTS} is not a readable safetensors file: {str(error).splitlines()[0]}",
            hint="restore the file that the training run wrote",
        ) from error
    expected = beacon_weights(network)
    different = sorted(expected.keys() ^ weights.keys())
    different += [
        name for name in expected if name in weights and expected[name].shape != weights[name].shape
    ]
    if different:
        raise StoreError(
            f"the beacons at {url} do not match this model: {different[0]}, for example, is missing or has another shape",
            hint="set model.beacon.projections and model.beacon.rank as in the recipe of that run, and use the same base",
        )
    for name, weight in expected.items():
        weight.copy_(weights[name])
