"""Checkpoints leave the training thread: what is written is committed (hashed, uploaded) behind its back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch.distributed as dist

from tailor.errors import StoreError, TailorError
from tailor.store import Publication, Store
from tailor.store.shares import SharedPublication, begin
from tailor.train import checkpoint
from tailor.train.checkpoint import State
from tailor.train.strategy import Strategy


class Saver:
    """Saves checkpoints, one at a time: rank 0 alone, or every worker its part. A context: what is under way is finished at its end.

    `durable` is called before each commit: everything that was reported up to the checkpoint must be
    in the run's log by then. A commit that fails stops the run at the next step.
    """

    def __init__(self, run: Store, *, keep: int, durable: Callable[[], None]) -> None:
        self._run, self._keep, self._durable = run, keep, durable
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # not when the user wants to stop at once
            self._join()

    def save(self, strategy: Strategy, state: State) -> float:
        """Write a checkpoint and begin to commit it; returns the seconds that this took from training.

        Called by every worker.
        Waits for the commit before, so that a slow store holds training back rather than filling the disk.
        """
        began = time.perf_counter()
        self.wait()
        made = self._publication(strategy, checkpoint.name_of(state.step))
        if made is None:
            return time.perf_counter() - began
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
        """Until what was saved is committed. Raises what kept it from that."""
        self._join()
        self.check()

    def check(self) -> None:
        """Raise the error of a commit that failed."""
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _publication(self, strategy: Strategy, name: str) -> Publication | None:
        """Where this worker writes; None where it has nothing to write."""
        folder = self._run.join(checkpoint.FOLDER)
        if not strategy.shares:
            return folder.publication(name) if strategy.rank == 0 else None
        told = [begin(folder, name) if strategy.rank == 0 else ""]
        if strategy.world > 1:
            dist.broadcast_object_list(told, src=0)
        return SharedPublication(folder, name, token=told[0], rank=strategy.rank, world=strategy.world)

    def _commit(self, made: Publication, state: State, rank: int) -> None:
        try:
            made.commit(self._durable)
            if rank == 0:
                checkpoint.remove_old(self._run, keep=self._keep, best_step=state.best_step)
        except Exception as error:  # raised in the training thread
            self._error = _explained(error, made, state.step)


def _explained(error: Exception, made: Publication, step: int) -> Exception:
    if not isinstance(error, TailorError) or not made.folder.exists():
        return error
    return StoreError(
        f"the checkpoint of step {step} could not be committed: {error.message}",
        mend=f"{error.mend + '; ' if error.mend else ''}the checkpoint is kept in {made.folder}",
    )
