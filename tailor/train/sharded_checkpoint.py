"""Sharded checkpoints: each worker writes its shards, and any number of workers can read them.

    weights-00001-of-00004.safetensors     elements start…stop of each trained weight, flattened, float32
    optimizer-00001-of-00004.safetensors   the same elements of the optimizer's state, as WEIGHT/STATE

The metadata of the files give each weight's shape and the start of its shard. The reader also accepts the unsharded
checkpoints that data parallelism writes, so that a run can resume with another strategy.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailor.errors import StoreError
from tailor.layout import OPTIMIZER, WEIGHTS
from tailor.train.optimizer import numbering, shape_of, trained_parameters
from tailor.train.strategy.base import Sharded

WEIGHTS_STEM, OPTIMIZER_STEM = (name.partition(".")[0] for name in (WEIGHTS, OPTIMIZER))
"""First part of the names of the workers' files."""


def write(folder: Path, strategy: Sharded) -> None:
    """Write this worker's two files of a checkpoint."""
    from safetensors.torch import save_file

    suffix = f"{strategy.rank + 1:05d}-of-{strategy.world:05d}.safetensors"
    parts, keys = strategy.shards(), strategy.state_keys()
    about = {part.name: {"shape": part.shape, "start": part.start} for part in parts}
    weights = {part.name: _on_host(strategy.read(part)) for part in parts}
    save_file(weights, folder / f"{WEIGHTS_STEM}-{suffix}", metadata={"parts": json.dumps(about)})
    del weights
    states = {f"{part.name}/{key}": _on_host(strategy.read(part, key)) for part in parts for key in keys}
    metadata = {"keys": json.dumps(keys), "updates": str(strategy.updates)}
    save_file(states, folder / f"{OPTIMIZER_STEM}-{suffix}", metadata=metadata)


def _on_host(values: torch.Tensor) -> torch.Tensor:
    # A copy: safetensors would save the whole buffer that a view belongs to.
    return values.detach().to("cpu", torch.float32, copy=True).contiguous()


@dataclass(frozen=True)
class _Piece:
    """Elements `start` to `stop` of a flattened tensor, stored in a file under `key`."""

    start: int
    stop: int
    file: Any
    key: str


class ShardedReader:
    """Reads weights and optimizer state of a checkpoint folder, element range by element range. A context manager."""

    def __init__(self, folder: Path, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """expected: shapes of the trained weights, in the model's order. StoreError if the folder has others.

        Without it, only weights can be read.
        """
        self._folder, self._expected = folder, expected
        self._open = ExitStack()
        self._pieces: dict[str, list[_Piece]] = {}
        self._states: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of the trained weights, by name."""
        self.keys: list[str] = []
        """Names of the optimizer states with one number per element, e.g. `exp_avg`."""
        self.updates = 0
        """Number of steps that the optimizer had made."""

    def __enter__(self) -> ShardedReader:
        if (self._folder / WEIGHTS).is_file():
            self._index_unsharded()
        else:
            self._index_shards()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def read(self, name: str, start: int, stop: int, key: str | None = None) -> torch.Tensor:
        """Elements `start` to `stop` of a flattened weight, or of its optimizer state `key`: float32[stop - start].

        StoreError if the folder lacks some of them.
        """
        full = name if key is None else f"{name}/{key}"
        if full in self._states:
            return self._states[full].reshape(-1)[start:stop].float()
        values = torch.empty(stop - start)
        count = 0
        for piece in self._pieces[full]:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                values[first - start : last - start] = _elements(
                    piece, first - piece.start, last - piece.start
                )
                count += last - first
        if count != stop - start:
            raise _incomplete(self._folder, full)
        return values

    def full(self, name: str, key: str | None = None) -> torch.Tensor:
        """A full weight, or its optimizer state `key`, in its shape."""
        shape = self.shapes[name]
        return self.read(name, 0, math.prod(shape), key).view(shape)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, full weight) of every trained weight."""
        return ((name, self.full(name)) for name in self.shapes)

    def _index_shards(self) -> None:
        from safetensors import safe_open

        for path in sorted(self._folder.glob(f"{WEIGHTS_STEM}-*.safetensors")):
            file = self._open.enter_context(safe_open(path, "pt"))
            for name, about in json.loads(file.metadata()["parts"]).items():
                self.shapes[name] = tuple(about["shape"])
                self._add(name, about["start"], file, name)
            path = path.with_name(path.name.replace(WEIGHTS_STEM, OPTIMIZER_STEM))
            states = self._open.enter_context(safe_open(path, "pt"))
            self.keys = json.loads(states.metadata()["keys"])
            self.updates = int(states.metadata()["updates"])
            for name, about in json.loads(file.metadata()["parts"]).items():
                for key in self.keys:
                    self._add(f"{name}/{key}", about["start"], states, f"{name}/{key}")
        if not self.shapes:
            raise StoreError(
                f"{self._folder} has no weights", hint="remove it to resume from the previous checkpoint"
            )
        self._check()

    def _index_unsharded(self) -> None:
        from safetensors import safe_open

        file = self._open.enter_context(safe_open(self._folder / WEIGHTS, "pt"))
        for name in file.keys():  # noqa: SIM118 — safe_open returns no mapping
            self.shapes[name] = tuple(file.get_slice(name).get_shape())
            self._add(name, 0, file, name, count=math.prod(self.shapes[name]))
        self._check()
        if self._expected is not None:
            self._index_unsharded_optimizer(self._folder / OPTIMIZER, self._expected)

    def _index_unsharded_optimizer(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise StoreError(
                f"{path} is not a valid optimizer state file: {str(error).splitlines()[0]}",
                hint=f"remove {path.parent} to resume from the previous checkpoint",
            ) from error
        names = numbering(saved, shapes)
        for number, state in saved["state"].items():
            name = names[number]
            for key, value in state.items():
                if torch.is_tensor(value) and tuple(value.shape) == self.shapes[name] and key != "step":
                    self._states[f"{name}/{key}"] = value
                    if key not in self.keys:
                        self.keys.append(key)
            self.updates = int(state.get("step", 0))

    def _check(self) -> None:
        if self._expected is None:
            return
        different = sorted(self.shapes.keys() ^ self._expected.keys())
        different += [name for name, shape in self._expected.items() if self.shapes.get(name, shape) != shape]
        if different:
            raise StoreError(
                f"the weights in {self._folder} do not match those that this recipe trains: {different[0]}, for example, "
                "is missing or has another shape",
                hint="set another save.to after changing the model or the adapter",
            )

    def _add(self, full: str, start: int, file: Any, key: str, count: int | None = None) -> None:
        count = file.get_slice(key).get_shape()[0] if count is None else count
        self._pieces.setdefault(full, []).append(_Piece(start, start + count, file, key))


def restore(folder: Path, strategy: Sharded, *, optimizer: bool = True) -> None:
    """Load this worker's shards from a checkpoint into the strategy. StoreError if the checkpoint is damaged or does not match.

    optimizer: load its state too.
    """
    shapes = {name: shape_of(p) for name, p in trained_parameters(strategy.model)}
    with ShardedReader(folder, shapes) as saved:
        keys = saved.keys if optimizer else []
        if optimizer:
            strategy.setup_state(keys, saved.updates)
        for part in strategy.shards():
            for key in (None, *keys):
                strategy.write(part, saved.read(part.name, part.start, part.stop, key), key)
    strategy.sync()


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was written by a sharded strategy."""
    return not (folder / WEIGHTS).is_file()


def _elements(piece: _Piece, first: int, last: int) -> torch.Tensor:
    stored = piece.file.get_slice(piece.key)
    if len(stored.get_shape()) == 1:
        values: torch.Tensor = stored[first:last]
    else:
        values = piece.file.get_tensor(piece.key).reshape(-1)[first:last]
    return values.float()


def _incomplete(folder: Path, name: str) -> StoreError:
    return StoreError(
        f"{folder} has only some elements of {name}",
        hint=f"remove {folder} to resume from the previous checkpoint",
    )
