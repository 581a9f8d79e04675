"""Lock a run folder, so that only one process at a time works on it. `.lock` names the process.

On a local disk the lock is a file lock of the operating system, which is released when the process ends. Object stores
have no locks, so there the file is a lease: its holder rewrites it every few seconds, and a lease that is not renewed
belongs to a dead process.
"""

from __future__ import annotations

import errno
import getpass
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tailor.errors import StoreError
from tailor.layout import LOCK
from tailor.runs.words import now
from tailor.store import Periodic
from tailor.store.json_files import JsonFile, Number, Positive, made

if TYPE_CHECKING:
    from tailor.store import Store

RENEW_SECONDS = 10.0
"""Interval at which a lease is renewed."""
LEASE_SECONDS = 45.0
"""A lease expires when it has not been renewed for this long."""
SETTLE_SECONDS = 1.0
"""Time after which two processes that write a lease at the same moment both see which one was written last."""
TRY_SECONDS = 1.0
"""How long to retry a local lock: a process that only checks the lock also takes it for a moment."""


@dataclass(frozen=True)
class Holder:
    """The process that works, or has worked, on a run."""

    attempt: str
    """Unique name of this start of the command, because process ids are reused."""
    user: str
    host: str
    pid: Positive
    since: str
    renewed: Number = 0.0
    """Seconds since the epoch, by the holder's clock."""
    processes: str = ""
    """Boot id and PID namespace, in which `pid` is valid: several machines may have the same host name."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


LOCK_FILE = JsonFile(Holder, "remove {file} if no process works on the run")


@contextmanager
def lock(run: Store, waiting: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Lock the run folder; yields the name of the attempt. StoreError, which names the process, when another one has the lock.

    waiting: called with a message when an old lease must first expire.
    """
    me = Holder(
        uuid.uuid4().hex, _user(), socket.gethostname(), os.getpid(), now(), time.time(), _processes()
    )
    with (_local if run.is_local else _lease)(run, me, waiting):
        yield me.attempt


def holder(run: Store) -> Holder | None:
    """The process that works on the run now, or None."""
    if run.is_local:
        return _read(run) if run.exists(LOCK) and not _is_free(run) else None
    found = _read(run)
    return found if found and time.time() - found.renewed < LEASE_SECONDS and not _is_dead(found) else None


def is_held_by(run: Store, attempt: str) -> bool:
    """Whether an attempt still has the lock. A worker that outlives its command must not write any more.

    An empty attempt name means that no lock is needed. StoreError when the store does not respond.
    """
    found = _read(run)
    return not attempt or (found is not None and found.attempt == attempt)


def _read(run: Store) -> Holder | None:
    if not run.exists(LOCK):
        return None
    with suppress(StoreError):  # just being written or removed
        return made(Holder, LOCK_FILE.parse(run.read_bytes(LOCK), run.url_of(LOCK)))
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return f"user {os.getuid()}"


def _processes() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _refusal(run: Store, found: Holder | None) -> StoreError:
    return StoreError(
        f"another process is working on the run at {run.url}" + (f": {found}" if found else ""),
        hint="wait until it ends, stop it, or set another save.to",
    )


@contextmanager
def _local(run: Store, me: Holder, waiting: Callable[[str], None]) -> Iterator[None]:
    import fcntl

    run.append_text(LOCK, "")  # creates the file; must not replace a file that another process has locked
    with run.local_path(LOCK).open("r+b", buffering=0) as file:
        began = time.monotonic()
        while not _locked(run, file, fcntl.LOCK_EX):
            if time.monotonic() - began > TRY_SECONDS:
                raise _refusal(run, _read(run))
            time.sleep(TRY_SECONDS / 20)
        try:
            # Write into the locked file itself: a file that replaces it would not be locked.
            file.write(LOCK_FILE.text(asdict(me)).encode())
            file.truncate()
            os.fsync(
                file.fileno()
            )  # NFS shows the holder to the workers of other nodes only when the file is flushed
        except OSError as error:
            raise StoreError(
                f"{run.url_of(LOCK)} cannot be written: {error}", hint="free some space on its disk"
            ) from error
        yield


def _locked(run: Store, file: IO[bytes], how: int) -> bool:
    """Try to take the lock; False when another process has it. StoreError when the file system does not support locks."""
    import fcntl

    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise StoreError(
            f"{run.url_of(LOCK)} cannot be locked: {error}",
            hint="set save.to to a folder on a file system that supports file locks (flock)",
        ) from error
    return True


def _is_free(run: Store) -> bool:
    import fcntl

    with run.local_path(LOCK).open("rb") as file:  # read only: this user may have no write permission
        return _locked(run, file, fcntl.LOCK_SH)


@contextmanager
def _lease(run: Store, me: Holder, waiting: Callable[[str], None]) -> Iterator[None]:
    _wait_until_free(run, waiting)
    LOCK_FILE.write(run, LOCK, asdict(me))
    time.sleep(SETTLE_SECONDS)
    if not is_held_by(run, me.attempt):
        raise _refusal(run, _read(run))

    def renew() -> None:
        if is_held_by(run, me.attempt):
            LOCK_FILE.write(run, LOCK, asdict(me) | {"renewed": time.time()})

    with ExitStack() as stack:
        stack.callback(_release, run, me)
        stack.callback(Periodic(renew, RENEW_SECONDS).close)
        yield


def _release(run: Store, me: Holder) -> None:
    with suppress(StoreError):  # do not hide the error that ended the run
        if is_held_by(run, me.attempt):
            run.remove(LOCK)


def _wait_until_free(run: Store, waiting: Callable[[str], None]) -> None:
    found = _read(run)
    if found is None or _is_dead(found):
        return
    began = time.monotonic()
    waiting(
        f"{run.url} is locked by {found}; waiting up to {LEASE_SECONDS:.0f} s to see whether it is still running"
    )
    while (seen := _read(run)) is not None:
        if seen != found:
            raise _refusal(run, seen)
        if time.monotonic() - began > LEASE_SECONDS:
            return
        time.sleep(min(1.0, LEASE_SECONDS / 4))


def _is_dead(found: Holder) -> bool:
    """Whether the process has ended for certain, which is known only for a process of this machine."""
    if found.host != socket.gethostname() or not found.processes or found.processes != _processes():
        return False
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
