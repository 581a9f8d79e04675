"""A folder that several workers write together: it exists when the files of all of them are there."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError, TailorError
from tailor.store.publication import Publication, _describe, _files, _sync
from tailor.store.store import COMMIT, TEMPORARY, uploads

if TYPE_CHECKING:
    from tailor.store.store import Store

SHARE, _OWN = ".share-", ".own-"
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 30
"""How long rank 0 still waits for the others once its worker fails."""


def begin(store: Store, name: str) -> str:
    """Called by rank 0, before any worker opens its share: a token that all of them are to be told."""
    token = f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    if store.is_local:
        store.make()
        store.local_path(token).mkdir()
    else:
        store.remove(name)
    return token


class ShardedPublication(Publication):
    """One worker's share. Every worker writes its files to a `folder` of its own and commits; rank 0's comes last.

    No worker waits for another but rank 0, in its `commit`, for what the others leave behind in the store.
    File names must differ between workers.
    """

    def __init__(self, store: Store, name: str, *, token: str, rank: int, world: int) -> None:
        self._store, self._name, self._token, self._rank, self._world = store, name, token, rank, world
        self.url = store.join(name).url
        if store.is_local:
            self._together = store.local_path(token)
            if not self._together.is_dir():
                raise StoreError(
                    f"worker {rank} does not see {self._together}, which worker 0 has made",
                    hint="set save.to to a folder that every worker sees, or to a URL",
                )
            self.folder = self._together / f"{_OWN}{rank:05d}"
        else:
            self.folder = uploads(store.url) / f"{token}-{rank:05d}"
        self._hurried = threading.Event()
        with self._writing():
            self.folder.mkdir(parents=True)

    def hurry(self) -> None:
        """Wait only a while longer for the other workers' shares."""
        self._hurried.set()

    def commit(self, guard: Callable[[], None] = lambda: None) -> None:
        """Hand this worker's files over; on rank 0, wait for the others' and make the folder appear.

        `guard` is called on rank 0 before it changes the store, and stops it by raising.
        """
        if self._rank > 0:
            try:
                self._leave({"files": self._hand_over()})
            except TailorError as error:
                self._leave({"error": error.message})
                raise
            return
        guard()
        marker = self._hand_over()
        for rank in range(1, self._world):
            marker |= self._collect(rank)
        text = json.dumps(dict(sorted(marker.items())), indent=1) + "\n"
        guard()
        if self._store.is_local:
            with self._writing():
                for rank in range(1, self._world):
                    os.unlink(self._together / self._share(rank))
                (self._together / COMMIT).write_text(text)
                _sync(self._together / COMMIT)
                self.folder = self._together
                self._take_the_name()
            return
        self._store.write_text(f"{self._name}/{COMMIT}", text)
        for rank in range(1, self._world):
            self._store.remove(f"{self._name}/{self._share(rank)}")
        self.discard()

    def _hand_over(self) -> dict[str, Any]:
        """Describe this worker's files, and put them where the others' are."""
        with self._writing():
            marker = {name: _describe(self.folder / name, sync=True) for name in _files(self.folder)}
            if self._store.is_local:
                for name in marker:
                    os.rename(self.folder / name, self._together / name)
                self.folder.rmdir()
                return marker
        for name in marker:
            self._store.put_file(self.folder / name, f"{self._name}/{name}")
        return marker

    def _leave(self, message: dict[str, Any]) -> None:
        """Put down for rank 0 what this worker's share is, and what kept it from that."""
        text = json.dumps(message)
        if self._store.is_local:
            with self._writing():
                temporary = self._together / f"{self._share(self._rank)}.tmp"
                temporary.write_text(text)
                os.replace(temporary, self._together / self._share(self._rank))
        else:
            self._store.write_text(f"{self._name}/{self._share(self._rank)}", text)
            self.discard()

    def _collect(self, rank: int) -> dict[str, Any]:
        place = f"{self._token if self._store.is_local else self._name}/{self._share(rank)}"
        patience: float | None = None
        while not self._store.exists(place):
            if patience is None and self._hurried.is_set():
                patience = time.monotonic() + _PATIENCE_SECONDS
            if patience is not None and time.monotonic() > patience:
                raise StoreError(f"worker {rank} did not hand over its share of {self.url}")
            time.sleep(_POLL_SECONDS)
        message = self._store.read_json(place)
        if "error" in message:
            raise StoreError(f"the share of worker {rank} is missing: {message['error']}")
        files: dict[str, Any] = message["files"]
        return files

    def _share(self, rank: int) -> str:
        """Of this attempt: a worker of an earlier one that lives on does not hand over its files to it."""
        return f"{SHARE}{rank:05d}-{self._token.rpartition('-')[2]}"
