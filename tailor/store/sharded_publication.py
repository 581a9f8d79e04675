"""Publish a folder that several workers write together: readers see it when the files of all workers are there."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailor.errors import StoreError, TailorError
from tailor.store.publication import COMMIT_FILE, Publication, _describe, _files, _sync
from tailor.store.removal import TEMPORARY, Made
from tailor.store.store import COMMIT, uploads

if TYPE_CHECKING:
    from tailor.store.store import Store

SHARE, _OWN = ".share-", ".own-"
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 30
"""How long rank 0 waits for the other workers after `hurry`."""


def begin(store: Store, name: str, made: Made) -> str:
    """Prepare the store. Rank 0 calls it first and sends the returned token to all workers.

    made: the files of such a folder, to recognize an incomplete one. DeletionError when the name has other files.
    """
    token = f"{TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
    if store.is_local:
        store.make()
        store.local_path(token).mkdir()
    else:
        store.remove(name, made)
    return token


class ShardedPublication(Publication):
    """One worker's part of the folder. Every worker writes its files to its own `folder` and commits.

    Only rank 0 waits: its `commit` polls the store for the messages of the other workers, then publishes the folder.
    File names must differ between workers. token: from `begin`.
    """

    def __init__(self, store: Store, name: str, *, token: str, rank: int, world: int) -> None:
        self._store, self._name, self._token, self._rank, self._world = store, name, token, rank, world
        self.url = store.join(name).url
        if store.is_local:
            self._together = store.local_path(token)
            if not self._together.is_dir():
                raise StoreError(
                    f"worker {rank} does not see the folder {self._together}, which worker 0 has created",
                    hint="set save.to to a shared file system that every worker can access, or to a URL",
                )
            self.folder = self._together / f"{_OWN}{rank:05d}"
        else:
            self.folder = uploads(store.url) / f"{token}-{rank:05d}"
        self._hurried = threading.Event()
        self._create()

    def hurry(self) -> None:
        """Limit the waiting for the other workers to `_PATIENCE_SECONDS` from now, as some may have died."""
        self._hurried.set()

    def commit(self, guard: Callable[[], None] = lambda: None) -> None:
        """Move this worker's files to the common folder. On rank 0, also wait for the other workers, then publish.

        guard: called on rank 0 before each change of the store; an exception from it stops the commit. StoreError on
        rank 0 when another worker fails.
        """
        if self._rank > 0:
            try:
                self._report({"files": self._move_files()})
            except TailorError as error:
                self._report({"error": error.message})
                raise
            return
        guard()
        marker = self._move_files()
        for rank in range(1, self._world):
            marker |= self._collect(rank)
        text = COMMIT_FILE.text({"files": dict(sorted(marker.items()))})
        guard()
        if self._store.is_local:
            with self._writing():
                for rank in range(1, self._world):
                    os.unlink(self._together / self._message_name(rank))
                (self._together / COMMIT).write_text(text)
                _sync(self._together / COMMIT)
                self.folder = self._together
                self._take_the_name()
            return
        self._store.write_text(f"{self._name}/{COMMIT}", text)
        for rank in range(1, self._world):
            self._store.remove(f"{self._name}/{self._message_name(rank)}")
        self.discard()

    def _move_files(self) -> dict[str, Any]:
        """Move this worker's files to the common folder; returns their sizes and checksums."""
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

    def _report(self, message: dict[str, Any]) -> None:
        """Write the message for rank 0: this worker's files, or its error."""
        text = json.dumps(message)
        if self._store.is_local:
            with self._writing():
                temporary = self._together / f"{self._message_name(self._rank)}.tmp"
                temporary.write_text(text)
                os.replace(temporary, self._together / self._message_name(self._rank))
        else:
            self._store.write_text(f"{self._name}/{self._message_name(self._rank)}", text)
            self.discard()

    def _collect(self, rank: int) -> dict[str, Any]:
        """Wait for the message of a worker; returns its files. StoreError when the worker failed or is too late."""
        name = f"{self._token if self._store.is_local else self._name}/{self._message_name(rank)}"
        deadline: float | None = None
        while not self._store.exists(name):
            if deadline is None and self._hurried.is_set():
                deadline = time.monotonic() + _PATIENCE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                raise StoreError(f"worker {rank} has not written its files of {self.url}")
            time.sleep(_POLL_SECONDS)
        message = self._store.read_json(name)
        if "error" in message:
            raise StoreError(f"worker {rank} failed to write its files of {self.url}: {message['error']}")
        files: dict[str, Any] = message["files"]
        return files

    def _message_name(self, rank: int) -> str:
        """File name of a worker's message. The token makes it unique, so that a worker of an earlier attempt has no effect."""
        return f"{SHARE}{rank:05d}-{self._token.rpartition('-')[2]}"
