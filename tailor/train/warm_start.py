"""`model.warm_start`: begin from what another run trained, with a new optimizer and from step 0."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tailor.errors import StoreError
from tailor.layout import ADAPTER, ADAPTER_WEIGHTS, BEACON, BEACON_WEIGHTS, MODEL
from tailor.models.adapter_files import read_config
from tailor.models.adapters import adapter_name
from tailor.models.beacon import files
from tailor.models.beacon.modules import beacons_of
from tailor.store import COMMIT, Store, run_folder, verified
from tailor.train import checkpoint
from tailor.train.optimizer import shape_of, trained_parameters
from tailor.train.strategy import Sharded, Strategy

_SCALE = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}
"""PEFT's settings that scale an adapter, by their keys in a recipe."""


def find(url: str) -> Store:
    """The adapter's or checkpoint's folder that `url` means: itself, or the best that a run has.

    StoreError when there is none.
    """
    store = Store(url)
    artifact = store.exists(ADAPTER_WEIGHTS) or store.exists(BEACON_WEIGHTS)
    if artifact or run_folder.is_checkpoint(store):
        return store
    for name in (ADAPTER, BEACON):
        if store.is_committed(name):
            return store.join(name)
    if store.is_committed(MODEL):
        raise StoreError(
            f"model.warm_start: {store.url} trained a whole model",
            hint=f"set model.path: {store.join('model').url} instead",
        )
    if (newest := run_folder.latest_checkpoint(store)) is not None:
        return Store(newest)
    raise StoreError(
        f"model.warm_start: {store.url} has neither an adapter nor a checkpoint",
        hint="name a run's folder, a checkpoint or an adapter; a whole model goes into model.path",
    )


def warm_start(url: str, strategy: Strategy) -> str:
    """Put the trained weights into the strategy's model; returns the URL that they came from. They must fit exactly."""
    found = find(url)
    if found.exists(BEACON_WEIGHTS):
        with folder_of(found) as folder:
            _put_beacons(folder, found.url, strategy)
    elif found.exists(ADAPTER_WEIGHTS):
        with folder_of(found) as folder:
            _put_adapter(folder, found.url, strategy)
    else:
        checkpoint.load_weights(found.url, strategy)
    return found.url


def folder_of(found: Store) -> AbstractContextManager[Path]:
    """A local path of an adapter or checkpoint; a committed one is compared with its checksums."""
    parent, name = posixpath.split(found.url.rstrip("/"))
    return verified(Store(parent), name) if found.exists(COMMIT) else found.borrowed_path()


def _put_beacons(folder: Path, url: str, strategy: Strategy) -> None:
    if beacons_of(strategy.model.base) is None:
        raise StoreError(
            f"model.warm_start: {url} holds beacons, and this recipe has none",
            hint="set model.beacon as it was there",
        )
    files.put_weights(strategy.model.base, folder, url)


def _put_adapter(folder: Path, url: str, strategy: Strategy) -> None:
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / ADAPTER_WEIGHTS)
    model = strategy.model
    if not isinstance(model.network, PeftModel):
        raise StoreError(
            f"model.warm_start: {url} is an adapter, and this recipe trains every weight",
            hint="set model.adapter, or merge the adapter into its base and set model.path to that",
        )
    _check_scale(read_config(folder), url, model.network)
    if isinstance(strategy, Sharded):
        return _put_adapter_shards(weights, url, strategy)
    own = get_peft_model_state_dict(model.network, save_embedding_layers=False)
    _check_form({name: tuple(value.shape) for name, value in own.items()}, weights, url)
    set_peft_model_state_dict(model.network, weights)
    return None


def _put_adapter_shards(weights: dict[str, torch.Tensor], url: str, strategy: Sharded) -> None:
    """Each worker takes its part of every weight."""
    parameters = dict(trained_parameters(strategy.model))
    shapes = {adapter_name(name): shape_of(parameter) for name, parameter in parameters.items()}
    _check_form(shapes, weights, url)
    for part in strategy.shards():
        strategy.write(part, weights[adapter_name(part.name)].reshape(-1)[part.start : part.stop].float())
    strategy.sync()


def _check_form(own: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor], url: str) -> None:
    odd = sorted(own.keys() ^ weights.keys())
    odd += [name for name in own if name in weights and tuple(weights[name].shape) != own[name]]
    if odd:
        raise StoreError(
            f"model.warm_start: the adapter at {url} has another form than this recipe's, for example {odd[0]}",
            hint="set the rank, target_modules and modules_to_save of model.adapter as they were there",
        )


def _check_scale(theirs: dict[str, Any], url: str, network: Any) -> None:
    """The same factors mean another update under another scale, which neither names nor shapes show."""
    ours = network.peft_config["default"]
    for setting, key in _SCALE.items():
        if theirs.get(setting) != getattr(ours, setting):
            raise StoreError(
                f"model.warm_start: {url} was trained with model.adapter.{key} {theirs.get(setting)}, "
                f"and this recipe has {getattr(ours, setting)}",
                hint=f"set model.adapter.{key} as it was there",
            )
