"""What a resumed run keeps of the progress in its checkpoint: the best evaluation, and where a divergence reloads from."""

from __future__ import annotations

import posixpath
from dataclasses import asdict

import torch.distributed as dist

from tailor.layout import CHECKPOINTS
from tailor.store import Store, run_folder
from tailor.train.checkpoint import State
from tailor.train.session import Session


def carry_over(session: Session, state: State, start: str) -> State:
    """The progress of a run that resumes from the checkpoint `start`, of this run or of another one. A collective call.

    The best evaluation stays the best if it measured the same rows. If not, the search for the best checkpoint starts over,
    and the earlier one is not deleted.
    """
    carried = [asdict(_carried(session, state, start)) if session.host.rank == 0 else None]
    if session.host.world > 1:  # not every machine may see the same checkpoints
        dist.broadcast_object_list(carried, src=0, device=session.host.device)
    assert carried[0] is not None
    return State(**carried[0])


def begin(session: Session) -> State:
    """The progress of a run that starts from the beginning."""
    return State(best_rows=_rows(session))


def _rows(session: Session) -> str | None:
    """Digest of the evaluation rows that `save.best` compares losses on, on rank 0."""
    if not session.plan.save.best or session.host.rank != 0:
        return None
    return session.tokens.split("evaluation").digest()


def other_run(session: Session, start: str) -> str | None:
    """URL of the run that has the checkpoint `start`; None if it is this run."""
    run = posixpath.dirname(posixpath.dirname(start.rstrip("/")))
    return None if run == session.run.url else run


def checkpoint_url(session: Session, step: int, run: str | None) -> str:
    """URL of the checkpoint of a step. run: URL of the run that has it, None for this one."""
    store = session.run if run is None else Store(run)
    return store.join(CHECKPOINTS, run_folder.checkpoint_name(step)).url


def _carried(session: Session, state: State, start: str) -> State:
    plan, other = session.plan, other_run(session, start)
    if start == plan.resume_from:  # the changed recipe may ask for more steps or watch another metric
        state.watched_best, state.unimproved, state.stopped_early = None, 0, False
    if other is not None:
        state.best_run, state.reload_run = state.best_run or other, state.reload_run or other
        state.earlier_best = []
    state.best_run = _unless_own(session, state.best_run, state.best_step)
    state.reload_run = _unless_own(session, state.reload_run, state.reload_from)
    reloads = start == plan.resume_from and plan.divergence.action == "reload"
    if reloads and not _exists(session, state.reload_from, state.reload_run):
        state.reload_from, state.reload_run = state.step, other
    rows = _rows(session) or state.best_rows
    # Checkpoints of earlier versions do not name their rows. Those of an unchanged recipe are the same.
    before = rows if state.best_rows is None and start != plan.resume_from else state.best_rows
    if state.best_step is not None and rows != before:
        why = "the evaluation rows have changed" if before else "it does not name its evaluation rows"
        _start_over(session, state, why)
    if state.best_step is not None and not _exists(session, state.best_step, state.best_run):
        _start_over(session, state, "it is missing")
    if state.best_step is not None and start == plan.resume_from and plan.save.best:
        session.say(
            f"the best evaluation so far is that of step {state.best_step} (loss {state.best_loss:.4f})"
        )
    state.best_rows = rows
    return state


def _start_over(session: Session, state: State, why: str) -> None:
    assert state.best_step is not None
    url = checkpoint_url(session, state.best_step, state.best_run)
    session.say(f"the search for the best checkpoint starts over, without {url}: {why}")
    if state.best_run is None:
        state.earlier_best = [*state.earlier_best, state.best_step]
    state.best_step = state.best_loss = state.best_run = None


def _unless_own(session: Session, run: str | None, step: int | None) -> str | None:
    return None if step is None or run == session.run.url else run


def _exists(session: Session, step: int | None, run: str | None) -> bool:
    if step is None:
        return False
    parent, name = posixpath.split(checkpoint_url(session, step, run))
    return Store(parent).is_committed(name)
