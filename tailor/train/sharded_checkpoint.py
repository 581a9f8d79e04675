"""Checkpoints in parts: each worker writes what it holds, and any number of workers reads it again.

    weights-00001-of-00004.safetensors     elements start…stop of each trained weight, flattened, float32
    optimizer-00001-of-00004.safetensors   the same elements of the optimizer's state, as WEIGHT/STATE

The files' metadata name each weight's shape and where its part starts. The same reader takes the whole weights
and optimizer state that data parallelism writes, so a run may go on under another strategy.
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
from tailor.train.optimizer import decayed_first, shape_of, trained_parameters
from tailor.train.strategy.base import Sharded

WEIGHTS_STEM, OPTIMIZER_STEM = (name.partition(".")[0] for name in (WEIGHTS, OPTIMIZER))
"""How the names of the workers' files begin."""


def write(folder: Path, strategy: Sharded) -> None:
    """Write this worker's two files."""
    from safetensors.torch import save_file

    suffix = f"{strategy.rank + 1:05d}-of-{strategy.world:05d}.safetensors"
    parts, keys = strategy.shards(), strategy.state_keys()
    about = {part.name: {"shape": part.shape, "start": part.start} for part in parts}
    weights = {part.name: _on_host(strategy.read(part)) for part in parts}
    save_file(weights, folder / f"{WEIGHTS_STEM}-{suffix}", metadata={"parts": json.dumps(about)})
    del weights
    states = {f"{part.name}/{key}": _on_host(strategy.read(part, key)) for part in parts for key in keys}
    told = {"keys": json.dumps(keys), "updates": str(strategy.updates)}
    save_file(states, folder / f"{OPTIMIZER_STEM}-{suffix}", metadata=told)


def _on_host(values: torch.Tensor) -> torch.Tensor:
    # A view of a flat buffer would be saved with all of it.
    return values.detach().to("cpu", torch.float32, copy=True).contiguous()


@dataclass(frozen=True)
class _Piece:
    """Elements `start` to `stop` of a tensor, in a file."""

    start: int
    stop: int
    file: Any
    key: str


class ShardedReader:
    """The weights and the optimizer's state of a checkpoint folder, read part by part. A context."""

    def __init__(self, folder: Path, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """`expected`: shapes of the trained weights, in the model's order. StoreError where the folder has others.

        Without them, only weights can be read.
        """
        self._folder, self._expected = folder, expected
        self._open = ExitStack()
        self._pieces: dict[str, list[_Piece]] = {}
        self._states: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of the trained weights, by name."""
        self.keys: list[str] = []
        """The optimizer's states that have a number for each element."""
        self.updates = 0
        """Steps that the optimizer had made."""

    def __enter__(self) -> ShardedReader:
        whole = (self._folder / WEIGHTS).is_file()
        if whole:
            self._index_whole()
        else:
            self._index_parts()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def read(self, name: str, start: int, stop: int, key: str | None = None) -> torch.Tensor:
        """Elements of a weight, or of its state: float32[stop - start]."""
        full = name if key is None else f"{name}/{key}"
        if full in self._states:
            return self._states[full].reshape(-1)[start:stop].float()
        values = torch.empty(stop - start)
        found = 0
        for piece in self._pieces[full]:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                values[first - start : last - start] = _elements(
                    piece, first - piece.start, last - piece.start
                )
                found += last - first
        if found != stop - start:
            raise _not_whole(self._folder, full)
        return values

    def whole(self, name: str, key: str | None = None) -> torch.Tensor:
        """A whole weight, or its state, in its shape."""
        shape = self.shapes[name]
        return self.read(name, 0, math.prod(shape), key).view(shape)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every trained weight by name, one after another."""
        return ((name, self.whole(name)) for name in self.shapes)

    def _index_parts(self) -> None:
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
                f"{self._folder} holds no weights", hint="remove it to go on from the checkpoint before"
            )
        self._check()

    def _index_whole(self) -> None:
        from safetensors import safe_open

        file = self._open.enter_context(safe_open(self._folder / WEIGHTS, "pt"))
        for name in file.keys():  # noqa: SIM118 — no mapping
            self.shapes[name] = tuple(file.get_slice(name).get_shape())
            self._add(name, 0, file, name, count=math.prod(self.shapes[name]))
        self._check()
        if self._expected is not None:
            self._index_whole_optimizer(self._folder / OPTIMIZER, decayed_first(self._expected))

    def _index_whole_optimizer(self, path: Path, names: list[str]) -> None:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise StoreError(
                f"{path} is no optimizer state: {str(error).splitlines()[0]}",
                hint=f"remove {path.parent} to go on from the checkpoint before",
            ) from error
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
        odd = sorted(self.shapes.keys() ^ self._expected.keys())
        odd += [name for name, shape in self._expected.items() if self.shapes.get(name, shape) != shape]
        if odd:
            raise StoreError(
                f"{self._folder} holds other weights than this recipe trains, for example {odd[0]}",
                hint="use another save.to for a changed model or adapter",
            )

    def _add(self, full: str, start: int, file: Any, key: str, count: int | None = None) -> None:
        count = file.get_slice(key).get_shape()[0] if count is None else count
        self._pieces.setdefault(full, []).append(_Piece(start, start + count, file, key))


def restore(folder: Path, strategy: Sharded, *, optimizer: bool = True) -> None:
    """Put what a checkpoint holds of this worker's parts into the strategy. Raises StoreError."""
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
    """Whether a checkpoint was written in parts."""
    return not (folder / WEIGHTS).is_file()


def _elements(piece: _Piece, first: int, last: int) -> torch.Tensor:
    stored = piece.file.get_slice(piece.key)
    if len(stored.get_shape()) == 1:
        values: torch.Tensor = stored[first:last]
    else:
        values = piece.file.get_tensor(piece.key).reshape(-1)[first:last]
    return values.float()


def _not_whole(folder: Path, name: str) -> StoreError:
    return StoreError(
        f"{folder} holds {name} in part only", hint=f"remove {folder} to go on from the checkpoint before"
    )
