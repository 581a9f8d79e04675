"""Bytes of the tensors that are alive, counted operation by operation: what a step needs beside its weights, exactly."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailor.models import activations


class LiveBytes(TorchDispatchMode):
    """Inside it, every storage that an operation makes counts from then until it is freed.

    What activation offloading holds in host memory is counted apart, also where the device is the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.host = 0
        self._known: set[int] = set()
        self._offloading = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # a view of what was there before is nothing new
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._remove, key, 0 if self._offloading else size)
        if self._offloading:
            self.host += size
        else:
            self.now += size
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    @contextmanager
    def _telling_apart(self) -> Iterator[None]:
        to_host = activations._to_host

        def told(tensor: torch.Tensor) -> torch.Tensor:
            self._offloading = True
            try:
                return to_host(tensor)
            finally:
                self._offloading = False

        activations._to_host = told
        try:
            yield
        finally:
            activations._to_host = to_host


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor))


def measured(function: Callable[[], Any]) -> LiveBytes:
    """What a call makes: `peak`, what is left `now`, and all that went to the `host`, in bytes."""
    counted = LiveBytes()
    with counted, counted._telling_apart():
        function()
    return counted
