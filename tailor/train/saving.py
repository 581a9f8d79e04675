"""Save checkpoints in the background: training waits for the files only, a thread hashes, uploads and commits them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch.distributed as dist

from tailor.errors import StoreError, TailorError
from tailor.layout import CHECKPOINTS
from tailor.store import Publication, Store, run_folder
from tailor.store.sharded_publication import ShardedPublication, begin
from tailor.train import checkpoint
from tailor.train.checkpoint import State
from tailor.train.strategy import Strategy


class Saver:
    """Saves checkpoints one at a time: on rank 0 only, or each worker's shard if the strategy is sharded.

    A context manager that finishes a pending commit on exit. `durable` is called before each change of the store: when it
    returns, all records up to the checkpoint are in the run's log; it raises if another process owns the run by now. `say`
    reports a status line. A failed commit stops the run at the next step.
    """

    def __init__(
        self, run: Store, *, keep: int, durable: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._run, self._keep, self._durable, self._say = run, keep, durable, say
        self._notes: list[str] = []
        """Status lines of the thread, which the training thread reports. Each is reported once."""
        self._reported: set[str] = set()
        self._thread: threading.Thread | None = None
        self._made: Publication | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        self._run.join(CHECKPOINTS).sweep_uploads()  # left by a worker that died on this machine
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # not for KeyboardInterrupt: the user wants to stop at once
            if isinstance(self._made, ShardedPublication):
                self._made.hurry()  # do not wait for the shard of a worker that died
            self._join()

    def save(self, strategy: Strategy, state: State) -> float:
        """Write a checkpoint and start to commit it; returns the seconds that training waited. Every worker calls it.

        Waits for the previous commit first: a slow store slows training down instead of filling the disk.
        """
        began = time.perf_counter()
        self.wait()
        made = self._publication(strategy, run_folder.checkpoint_name(state.step))
        if made is None:
            return time.perf_counter() - began
        self._made = made
        try:
            checkpoint.write(made.folder, strategy, state)
        except BaseException:
            made.discard()
            raise
        self._thread = threading.Thread(
            target=self._commit, args=(made, replace(state), strategy.rank), name="checkpoint", daemon=True
        )
        self._thread.start()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Wait until the last checkpoint is committed. Raises the error of a failed commit."""
        self._join()
        self.check()

    def check(self) -> None:
        """Raise the error of a failed commit, if there is one. Report the checkpoints that could not be deleted."""
        while self._notes:
            if (note := self._notes.pop(0)) not in self._reported:
                self._reported.add(note)
                self._say(note)
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _publication(self, strategy: Strategy, name: str) -> Publication | None:
        """Where this worker writes its files; None if it has nothing to write."""
        folder = self._run.join(CHECKPOINTS)
        if not strategy.is_sharded:
            return Publication(folder, name) if strategy.rank == 0 else None
        tokens = [begin(folder, name, run_folder.is_checkpoint_file) if strategy.rank == 0 else ""]
        if strategy.world > 1:
            dist.broadcast_object_list(tokens, src=0, device=strategy.device)
        return ShardedPublication(folder, name, token=tokens[0], rank=strategy.rank, world=strategy.world)

    def _commit(self, made: Publication, state: State, rank: int) -> None:
        try:
            try:
                made.commit(self._durable)
            except TailorError as error:
                raise _commit_error(error, made, state.step) from error
            if rank == 0:
                self._notes += checkpoint.remove_old(self._run, keep=self._keep, needed=state.needed())
        except Exception as error:  # raised in the training thread
            self._error = error


def _commit_error(error: TailorError, made: Publication, step: int) -> StoreError:
    if not made.kept:
        made.discard()  # frees disk space for the log and the error report
    hints = [f"a complete copy is in {made.folder}"] if made.kept else []
    hints += [error.hint] if error.hint else []
    return StoreError(
        f"the checkpoint of step {step} could not be committed: {error.message}",
        hint="; ".join([*hints, "the same command resumes from the previous checkpoint"]),
    )
