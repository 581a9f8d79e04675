"""Checkpoints: what is trained, the optimizer's state, and where the run stands.

RUN/checkpoints/step-00000050/
    weights.safetensors   every trained weight, float32, by its name in the model
    optimizer.pt          the optimizer's state (tensors and numbers; read with weights_only)
                          (in place of these two, a pair for each worker where it holds a part: see `parts`)
    state.json            step, best evaluation, gradient scaler
    COMMIT                every file's size and checksum, written last: a folder without it is no checkpoint
"""

from __future__ import annotations

import json
import pickle
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailor.errors import StoreError
from tailor.layout import CHECKPOINTS, OPTIMIZER, STATE, WEIGHTS
from tailor.store import Store, verified
from tailor.store.run_folder import checkpoint_name, checkpoints
from tailor.train import sharded_checkpoint
from tailor.train.optimizer import decayed_first, trained_parameters
from tailor.train.strategy import Sharded, Strategy


@dataclass
class State:
    """Where a run stands between two steps."""

    step: int = 0
    """Steps done."""
    evaluated: bool = True
    """False when the run was stopped before the evaluation that was due at this step."""
    best_step: int | None = None
    best_loss: float | None = None
    """Lowest evaluation loss so far, and the step that gave it."""
    reload_from: int | None = None
    """Step of the checkpoint that `train.divergence.action: reload` goes back to."""
    diverged: int = 0
    """Steps in a row, up to this one, whose update was left out because they diverged."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The fp16 gradient scaler's state."""


def write(folder: Path, strategy: Strategy, state: State) -> None:
    """Write this worker's files of a checkpoint. StoreError when the disk does not take them."""
    from safetensors.torch import save_file

    with writing(f"the checkpoint of step {state.step}", folder, "the checkpoint before"):
        if isinstance(strategy, Sharded):
            sharded_checkpoint.write(folder, strategy)
        else:
            weights = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(strategy.model)}
            save_file(weights, folder / WEIGHTS)
            torch.save(strategy.optimizer.state_dict(), folder / OPTIMIZER)
        if strategy.rank == 0:
            (folder / STATE).write_text(json.dumps(asdict(state)))


@contextmanager
def writing(what: str, folder: Path, last: str) -> Iterator[None]:
    """Turn what a full disk makes the writers of `folder` raise into a StoreError. `last`: what a run goes on from."""
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
        why = "the disk did not take all of it" if "inline_container" in str(error) else _first_line(error)
        raise StoreError(
            f"{what} could not be written to {folder.parent}: {why}",
            hint=f"make room there, then give the same command again; it goes on from {last}",
        ) from error


def load(url: str, strategy: Strategy) -> State:
    """Put a checkpoint's weights and optimizer state into the strategy, whatever strategy wrote it.

    The optimizer keeps the settings that it was built with, which may be other ones by now.
    Raises a StoreError that names the file that is damaged, was altered, or holds something else.
    """
    with _files(url) as folder:
        if isinstance(strategy, Sharded):
            sharded_checkpoint.restore(folder, strategy)
        elif sharded_checkpoint.is_sharded(folder):
            _put_shards(folder, strategy)
        else:
            _put_weights(folder / WEIGHTS, url, strategy.model)
            with _reading(f"{url}/{OPTIMIZER}", "optimizer state"):
                state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
                _put_state(strategy.optimizer, state)
        with _reading(f"{url}/{STATE}", "state of a run"):
            return State(**json.loads((folder / STATE).read_text()))


def _put_shards(folder: Path, strategy: Strategy) -> None:
    shapes = {name: tuple(p.shape) for name, p in trained_parameters(strategy.model)}
    with sharded_checkpoint.ShardedReader(folder, shapes) as saved:
        _copy_weights(saved, strategy.model)
        states: dict[int, dict[str, torch.Tensor]] = {}
        for number, name in enumerate(decayed_first(shapes)):
            states[number] = {key: saved.whole(name, key) for key in saved.keys}
            if saved.updates:
                states[number]["step"] = torch.tensor(float(saved.updates))
        _put_state(strategy.optimizer, {**strategy.optimizer.state_dict(), "state": states})


def _put_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def load_weights(url: str, strategy: Strategy) -> None:
    """Put a checkpoint's weights into the model; their names must be exactly those that are trained."""
    with _files(url) as folder:
        if isinstance(strategy, Sharded):
            sharded_checkpoint.restore(folder, strategy, optimizer=False)
        elif sharded_checkpoint.is_sharded(folder):
            shapes = {name: tuple(p.shape) for name, p in trained_parameters(strategy.model)}
            with sharded_checkpoint.ShardedReader(folder, shapes) as saved:
                _copy_weights(saved, strategy.model)
        else:
            _put_weights(folder / WEIGHTS, url, strategy.model)


def _copy_weights(saved: sharded_checkpoint.ShardedReader, model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in trained_parameters(model):
            parameter.copy_(saved.whole(name))


def _files(url: str) -> AbstractContextManager[Path]:
    parent, name = posixpath.split(url.rstrip("/"))
    return verified(Store(parent), name)


@contextmanager
def _reading(file: str, what: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise StoreError(
            f"{file} is no {what}: {_first_line(error)}",
            hint=f"remove {posixpath.dirname(file)} to go on from the checkpoint before",
        ) from error


def _put_weights(file: Path, url: str, model: nn.Module) -> None:
    from safetensors.torch import load_file

    with _reading(f"{url}/{WEIGHTS}", "file of weights"):
        weights = load_file(file)
    trained = dict(trained_parameters(model))
    odd = sorted(trained.keys() ^ weights.keys())
    odd += [name for name in trained if name in weights and weights[name].shape != trained[name].shape]
    if odd:
        raise StoreError(
            f"{url} holds other weights than this recipe trains, for example {odd[0]}",
            hint="use another save.to for a changed model or adapter",
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def remove_old(run: Store, *, keep: int, needed: Iterable[int | None]) -> None:
    """Delete whole checkpoints but the newest `keep` and those of the steps that are `needed`."""
    names = checkpoints(run)
    kept = set(names[-keep:]) | {checkpoint_name(step) for step in needed if step is not None}
    for name in names:
        if name not in kept:
            run.join(CHECKPOINTS).remove(name)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
