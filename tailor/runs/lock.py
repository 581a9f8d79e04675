"""One process at a time works on a run's folder. `.lock` says which.

On a local disk the system keeps the lock, and lets go of it when the process ends. Object stores have no
locks, so there the file is a lease: its holder writes it anew every few seconds, and one that stays as it is
was left by a dead process.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tailor.errors import StoreError
from tailor.runs.clock import now
from tailor.store import Periodic

if TYPE_CHECKING:
    from tailor.store import Store

LOCK = ".lock"
RENEW_SECONDS = 10.0
LEASE_SECONDS = 45.0
"""A lease that was not renewed for so long is nobody's."""
SETTLE_SECONDS = 1.0
"""After so long, of two processes that write at once, both see whose lease it became."""


@dataclass(frozen=True)
class Holder:
    """The process that works, or worked, on a run."""

    attempt: str
    """Names this start of the command, whatever process numbers are used again."""
    user: str
    host: str
    pid: int
    since: str
    renewed: float = 0.0
    """Seconds since the epoch, by the holder's clock."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


@contextmanager
def lock(run: Store, waiting: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Hold the run's folder; gives the attempt's name. StoreError, with who holds it, when another process does.

    `waiting` is told why, when a lease has to run out first.
    """
    me = Holder(uuid.uuid4().hex, getpass.getuser(), socket.gethostname(), os.getpid(), now(), time.time())
    with (_local if run.is_local else _lease)(run, me, waiting):
        yield me.attempt


def holder(run: Store) -> Holder | None:
    """The process that is working on a run right now."""
    if run.is_local:
        return _read(run) if run.exists(LOCK) and not _is_free(run) else None
    found = _read(run)
    return found if found and time.time() - found.renewed < LEASE_SECONDS and not _is_dead(found) else None


def is_held_by(run: Store, attempt: str) -> bool:
    """Whether an attempt still has the run. A worker that outlived its command must not write any more."""
    found = _read(run)
    return found is None or found.attempt == attempt


def _read(run: Store) -> Holder | None:
    try:
        return Holder(**run.read_json(LOCK))
    except (StoreError, TypeError):  # not there, or being made
        return None


def _refusal(run: Store, found: Holder | None) -> StoreError:
    return StoreError(
        f"another process is working on the run at {run.url}" + (f": {found}" if found else ""),
        mend="wait for it, end it, or set another save.to",
    )


@contextmanager
def _local(run: Store, me: Holder, waiting: Callable[[str], None]) -> Iterator[None]:
    import fcntl

    run.append_text(LOCK, "")  # makes the file, and never replaces the one that another process has locked
    with run.local_path(LOCK).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _refusal(run, _read(run)) from None
        # Into the locked file itself: a new one in its place would not be locked.
        file.write(json.dumps(asdict(me)))
        file.truncate()
        file.flush()
        yield


def _is_free(run: Store) -> bool:
    import fcntl

    with run.local_path(LOCK).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextmanager
def _lease(run: Store, me: Holder, waiting: Callable[[str], None]) -> Iterator[None]:
    _wait_until_free(run, waiting)
    run.write_json(LOCK, asdict(me))
    time.sleep(SETTLE_SECONDS)
    if not is_held_by(run, me.attempt):
        raise _refusal(run, _read(run))

    def renew() -> None:
        if is_held_by(run, me.attempt):
            run.write_json(LOCK, asdict(me) | {"renewed": time.time()})

    with ExitStack() as stack:
        stack.callback(_release, run, me)
        stack.callback(Periodic(renew, RENEW_SECONDS).close)
        yield


def _release(run: Store, me: Holder) -> None:
    with suppress(StoreError):  # what ended the run matters more
        if is_held_by(run, me.attempt):
            run.remove(LOCK)


def _wait_until_free(run: Store, waiting: Callable[[str], None]) -> None:
    found = _read(run)
    if found is None or _is_dead(found):
        return
    began = time.monotonic()
    waiting(f"{run.url} is held by {found}; waiting {LEASE_SECONDS:.0f} s at most to see whether it lives")
    while (seen := _read(run)) is not None:
        if seen != found:
            raise _refusal(run, seen)
        if time.monotonic() - began > LEASE_SECONDS:
            return
        time.sleep(min(1.0, LEASE_SECONDS / 4))


def _is_dead(found: Holder) -> bool:
    """Whether the process is known to be gone: it ran on this machine."""
    if found.host != socket.gethostname():
        return False
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
