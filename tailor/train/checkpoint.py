"""Checkpoints: the trained weights, the optimizer's state and the progress of the run.

RUN/checkpoints/step-00000050/
    weights.safetensors   every trained weight, float32, by its name in the model (and the initial factors of PiSSA and OLoRA)
    optimizer.pt          the optimizer's state (tensors and numbers; read with weights_only)
                          (a sharded strategy writes a pair per worker instead: see `sharded_checkpoint`)
    state.json            step, best evaluation, gradient scaler
    COMMIT                size and checksum of every file, written last: a folder without it is an incomplete checkpoint
"""

from __future__ import annotations

import pickle
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import NotRequired, TypedDict  # pydantic needs these before Python 3.12

from tailor.errors import StoreError
from tailor.layout import CHECKPOINTS, OPTIMIZER, STATE, WEIGHTS
from tailor.store import DeletionError, Store, published, verified
from tailor.store.json_files import Count, JsonFile, Number, made
from tailor.store.run_folder import checkpoint_name, checkpoints
from tailor.train import sharded_checkpoint
from tailor.train.optimizer import (
    NAMES,
    load_state,
    numbering,
    optimizer_order,
    saved_parameters,
    shape_of,
    trained_parameters,
)
from tailor.train.strategy import Sharded, Strategy


@dataclass
class State:
    """The progress of a run between two steps."""

    step: int = 0
    """Steps done."""
    evaluated: bool = True
    """False if the run was stopped before the evaluation that was due at this step."""
    best_step: int | None = None
    best_loss: float | None = None
    """Lowest evaluation loss so far; `best_step` is its step."""
    best_run: str | None = None
    """URL of the run that has the checkpoint of `best_step`, if it is another one, which this run has resumed."""
    best_rows: str | None = None
    """Digest of the evaluation rows and the method that `best_loss` belongs to."""
    earlier_best: list[int] = field(default_factory=list)
    """Best steps by evaluations that are not comparable. Their checkpoints are kept."""
    reload_from: int | None = None
    """Step of the checkpoint that `train.divergence.action: reload` loads."""
    reload_run: str | None = None
    """URL of the run that has that checkpoint, if it is another one, which this run has resumed."""
    watched_best: float | None = None
    """Best value of `train.early_stopping.metric` that counted as an improvement."""
    unimproved: int = 0
    """Number of consecutive evaluations up to this step without an improvement of that metric."""
    stopped_early: bool = False
    """Training has ended at this step."""
    diverged: int = 0
    """Number of consecutive steps up to this one that diverged and whose update was skipped."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 gradient scaler."""

    def needed(self) -> list[int]:
        """Steps of the checkpoints that must not be deleted."""
        return [step for step in (self.best_step, self.reload_from, *self.earlier_best) if step is not None]


class _State(TypedDict):
    """`State` as a file: `step` is required, older versions lack some of the others."""

    step: Count
    evaluated: NotRequired[bool]
    best_step: NotRequired[Count | None]
    best_loss: NotRequired[Number | None]
    best_run: NotRequired[str | None]
    best_rows: NotRequired[str | None]
    earlier_best: NotRequired[list[Count]]
    reload_from: NotRequired[Count | None]
    reload_run: NotRequired[str | None]
    watched_best: NotRequired[Number | None]
    unimproved: NotRequired[Count]
    stopped_early: NotRequired[bool]
    diverged: NotRequired[Count]
    scaler: NotRequired[dict[str, Any]]


STATE_FILE = JsonFile(_State, "remove {folder} to resume from the previous checkpoint")


def write(folder: Path, strategy: Strategy, state: State) -> None:
    """Write this worker's files of a checkpoint. StoreError if the disk is full or fails."""
    from safetensors.torch import save_file

    with writing(f"the checkpoint of step {state.step}", folder, "the previous checkpoint"):
        if isinstance(strategy, Sharded):
            sharded_checkpoint.write(folder, strategy)
        else:
            names = optimizer_order(strategy.optimizer, strategy.model)
            torch.save({**strategy.optimizer.state_dict(), NAMES: names}, folder / OPTIMIZER)
            with strategy.evaluation_weights():
                saved = saved_parameters(strategy.model)
                weights = {name: p.detach().cpu().contiguous() for name, p in saved}
                save_file(weights, folder / WEIGHTS)
        if strategy.rank == 0:
            (folder / STATE).write_text(STATE_FILE.text(asdict(state)))


@contextmanager
def writing(what: str, folder: Path, last: str) -> Iterator[None]:
    """Context that turns write errors (a full disk, for example) into a StoreError.

    what: is written; folder: where; last: what the run resumes from. All three are for the message.
    """
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError
        reason = (
            "the disk did not take all of the data"
            if "inline_container" in str(error)
            else _first_line(error)
        )
        raise StoreError(
            f"{what} could not be written to {folder.parent}: {reason}",
            hint=f"free disk space there, then run the same command again; it resumes from {last}",
        ) from error


def load(url: str, strategy: Strategy) -> State:
    """Load a checkpoint's weights and optimizer state into the strategy. Any strategy may have written it.

    The optimizer keeps its own hyperparameters (learning rate, weight decay …), which the recipe may have changed.
    Raises a StoreError that names the file if one is damaged, was altered or does not match the model.
    """
    with _files(url) as folder:
        if isinstance(strategy, Sharded):
            sharded_checkpoint.restore(folder, strategy)
        elif sharded_checkpoint.is_sharded(folder):
            _put_shards(folder, strategy)
        else:
            _put_weights(folder / WEIGHTS, url, strategy.model)
            with _reading(f"{url}/{OPTIMIZER}", "optimizer state file"):
                state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
                _put_state(strategy, state)
        return made(State, STATE_FILE.read_path(folder / STATE, f"{url}/{STATE}"))


def _put_shards(folder: Path, strategy: Strategy) -> None:
    shapes = {name: tuple(p.shape) for name, p in trained_parameters(strategy.model)}
    with sharded_checkpoint.ShardedReader(folder, shapes) as saved:
        _copy_weights(saved, strategy.model)
        states: dict[int, dict[str, torch.Tensor]] = {}
        order = optimizer_order(strategy.optimizer, strategy.model)
        for number, name in enumerate(order):
            states[number] = {key: saved.full(name, key) for key in saved.keys}
            if saved.updates:
                states[number]["step"] = torch.tensor(float(saved.updates))
        _put_state(strategy, {"state": states, NAMES: order})


def _put_state(strategy: Strategy, state: dict[str, Any]) -> None:
    """Load a saved optimizer state by the names of its weights: their numbers depend on the groups, and these on the version."""
    optimizer = strategy.optimizer
    names = numbering(state, {name: shape_of(p) for name, p in trained_parameters(strategy.model)})
    numbers = {name: number for number, name in enumerate(optimizer_order(optimizer, strategy.model))}
    states = {numbers[names[number]]: values for number, values in state["state"].items()}
    # The groups and their settings are those of the recipe.
    load_state(optimizer, {**optimizer.state_dict(), "state": states})


def load_weights(url: str, strategy: Strategy) -> None:
    """Load a checkpoint's weights, without the optimizer state. Their names must be exactly those of the trained weights."""
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
            parameter.copy_(saved.full(name))


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
            f"{file} is not a valid {what}: {_first_line(error)}",
            hint=f"remove {posixpath.dirname(file)} to resume from the previous checkpoint",
        ) from error


def _put_weights(file: Path, url: str, model: nn.Module) -> None:
    from safetensors.torch import load_file

    with _reading(f"{url}/{WEIGHTS}", "safetensors file"):
        weights = load_file(file)
    trained = dict(saved_parameters(model))
    different = sorted(trained.keys() ^ weights.keys())
    different += [name for name in trained if name in weights and weights[name].shape != trained[name].shape]
    if different:
        raise StoreError(
            f"the weights in {url} do not match those that this recipe trains: {different[0]}, for example, is missing "
            "or has another shape",
            hint="set another save.to after changing the model or the adapter",
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def remove_old(run: Store, *, keep: int, needed: Iterable[int]) -> list[str]:
    """Delete all complete checkpoints but the newest `keep` and those of the `needed` steps.

    A checkpoint to which files were added, or that is a symbolic link, stays. Returns a status line for each of them.
    """
    notes = []
    names = checkpoints(run)
    kept = set(names[-keep:]) | {checkpoint_name(step) for step in needed}
    for name in names:
        if name not in kept:
            folder = run.join(CHECKPOINTS)
            try:
                folder.remove(name, published(folder, name))
            except DeletionError as error:
                notes.append(f"an old checkpoint is kept: {error.message}")
    return notes


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
