"""`model.warm_start`: start from the trained weights of another run, with a new optimizer and from step 0."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tailor.errors import StoreError
from tailor.layout import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, BEACON, BEACON_WEIGHTS, MODEL
from tailor.models.adapter_files import check_init, read_config
from tailor.models.adapter_init import initial_factors
from tailor.models.adapters import adapter_name
from tailor.models.beacon import files
from tailor.models.beacon.modules import beacons_of
from tailor.spec.adapter import REPLACING
from tailor.spec.adapter_kinds import BY_PEFT_TYPE, Kind, known
from tailor.spec.model import Model
from tailor.store import COMMIT, OBJECT, Store, run_folder, verified
from tailor.train import checkpoint
from tailor.train.optimizer import shape_of, trained_parameters
from tailor.train.strategy import Sharded, Strategy


def find(url: str) -> Store:
    """The folder of an adapter, beacons or a checkpoint: `url` itself or, if it is a run, its artifact or newest checkpoint.

    StoreError if there is none.
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
            f"model.warm_start: the run {store.url} trained a full model, not an adapter",
            hint=f"set model.path: {store.join('model').url} instead",
        )
    if (newest := run_folder.latest_checkpoint(store)) is not None:
        return Store(newest)
    raise StoreError(
        f"model.warm_start: {store.url} has neither an adapter nor a checkpoint",
        hint="set it to a run, a checkpoint or an adapter; to start from a full model, set model.path",
    )


def check(model: Model) -> None:
    """Check `model.warm_start` as far as possible without the model, before the data is prepared.

    StoreError if `model.warm_start` names no trained weights, or an adapter of another type, rank or scale.
    """
    assert model.warm_start is not None
    source = find(model.warm_start)
    spec = model.adapter
    if spec is None or not source.exists(ADAPTER_WEIGHTS) or not source.exists(ADAPTER_CONFIG):
        return
    if spec.init in REPLACING:
        raise _replaced_start(source.url)
    ours = {key: getattr(spec, key) for key in spec.kind.keys}
    _check_scale(OBJECT.read(source, ADAPTER_CONFIG), source.url, spec.kind, ours)


def warm_start(url: str, strategy: Strategy) -> str:
    """Load the trained weights into the strategy's model; returns the URL that they come from.

    StoreError if their names, shapes or LoRA scale differ from the recipe's.
    """
    source = find(url)
    if source.exists(BEACON_WEIGHTS):
        with folder_of(source) as folder:
            _load_beacons(folder, source.url, strategy)
    elif source.exists(ADAPTER_WEIGHTS):
        with folder_of(source) as folder:
            _load_adapter(folder, source.url, strategy)
    else:
        checkpoint.load_weights(source.url, strategy)
    return source.url


def folder_of(store: Store) -> AbstractContextManager[Path]:
    """A local path of an adapter or checkpoint. The checksums of a committed one are verified."""
    parent, name = posixpath.split(store.url.rstrip("/"))
    return verified(Store(parent), name) if store.exists(COMMIT) else store.borrowed_path()


def _load_beacons(folder: Path, url: str, strategy: Strategy) -> None:
    if beacons_of(strategy.model.base) is None:
        raise StoreError(
            f"model.warm_start: {url} has beacons, but this recipe has no model.beacon",
            hint="set model.beacon as in the recipe of that run",
        )
    files.load_weights(strategy.model.base, folder, url)


def _load_adapter(folder: Path, url: str, strategy: Strategy) -> None:
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / ADAPTER_WEIGHTS)
    model = strategy.model
    if not isinstance(model.network, PeftModel):
        raise StoreError(
            f"model.warm_start: {url} is an adapter, but this recipe has no model.adapter",
            hint="set model.adapter, or merge the adapter into its base and set model.path to the merged model",
        )
    config = read_config(folder)
    check_init(config, url)
    if any(True for _ in initial_factors(model)):
        raise _replaced_start(url)
    own = model.network.peft_config["default"]
    kind = BY_PEFT_TYPE[own.peft_type]
    _check_scale(config, url, kind, {key: getattr(own, setting) for key, setting in kind.keys.items()})
    if isinstance(strategy, Sharded):
        return _load_adapter_shards(weights, url, strategy)
    expected = get_peft_model_state_dict(model.network, save_embedding_layers=False)
    _check_shapes({name: tuple(value.shape) for name, value in expected.items()}, weights, url)
    set_peft_model_state_dict(model.network, weights)
    return None


def _load_adapter_shards(weights: dict[str, torch.Tensor], url: str, strategy: Sharded) -> None:
    """Load this worker's shard of every weight."""
    parameters = dict(trained_parameters(strategy.model))
    shapes = {adapter_name(name): shape_of(parameter) for name, parameter in parameters.items()}
    _check_shapes(shapes, weights, url)
    for part in strategy.shards():
        strategy.write(part, weights[adapter_name(part.name)].reshape(-1)[part.start : part.stop].float())
    strategy.sync()


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor], url: str
) -> None:
    different = sorted(expected.keys() ^ weights.keys())
    different += [
        name for name in expected if name in weights and tuple(weights[name].shape) != expected[name]
    ]
    if different:
        raise StoreError(
            f"model.warm_start: the adapter at {url} does not match this recipe's: {different[0]}, for example, is missing or "
            "has another shape",
            hint="set the rank, target_modules and modules_to_save of model.adapter as in the recipe of that adapter",
        )


def _replaced_start(url: str) -> StoreError:
    return StoreError(
        f"model.warm_start: {url} is an adapter, which replaces the start that model.adapter.init asks for",
        hint="remove model.adapter.init, and set rank and alpha as in the adapter: a run with pissa or olora saves twice "
        "its rank and alpha",
    )


def _check_scale(theirs: Mapping[str, Any], url: str, kind: Kind, ours: Mapping[str, Any]) -> None:
    """With another scale the same matrices give another update, which names and shapes do not show. StoreError.

    ours: values of the keys of `kind` in this recipe.
    """
    if known(theirs.get("peft_type")) is not kind:
        raise StoreError(
            f"model.warm_start: {url} is an adapter of the type {theirs.get('peft_type')}, this recipe has {kind.peft_type}",
            hint="set model.adapter.type as in the recipe of that adapter",
        )
    for key, setting in kind.keys.items():
        # PEFT writes no pattern as {}, older versions as null. Dropout changes no weight.
        if key != "dropout" and (theirs.get(setting) or None) != (ours[key] or None):
            raise StoreError(
                f"model.warm_start: {url} was trained with model.adapter.{key}: {theirs.get(setting)}, "
                f"this recipe has {ours[key]}",
                hint=f"set model.adapter.{key}: {theirs.get(setting)}",
            )
