"""The training loop. There is one, for every method, strategy and host."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch.distributed as dist

from tailor import batches as batching
from tailor.models.documents import collate
from tailor.plan import Plan
from tailor.train import checkpoint, throughput
from tailor.train.artifact import write_artifact
from tailor.train.evaluation import evaluate
from tailor.train.host import Host
from tailor.train.learner import Learner, Step, Work, describe_rows, divergence_error
from tailor.train.prefetch import prefetch
from tailor.train.saving import Saver
from tailor.train.session import Probe, Session, open_session
from tailor.train.warm_start import warm_start


def run(plan: Plan, host: Host, probes: Sequence[Probe] = ()) -> Literal["finished", "stopped"]:
    """Train from the beginning or the host's checkpoint to the plan's last step, and write the artefact.

    When the host asks to stop, the loop saves a checkpoint after the step that it is in, and returns "stopped".
    """
    session = open_session(plan, host)
    start = host.resume()
    if plan.compile:
        session.model.base.get_decoder().compile()
    learner = Learner(session)
    if start is None and plan.model.warm_start is not None:
        session.say(f"beginning with the weights of {warm_start(plan.model.warm_start, session.strategy)}")
    state = checkpoint.State()
    if start is not None:
        state = checkpoint.load(start, session.strategy)
        learner.restore(state)
        session.say(f"going on from step {state.step}")
    for probe in probes:
        probe(session, "start")

    with Saver(session.run, keep=plan.save.keep, durable=host.flush) as saver:
        training = _Training(session, learner, saver, state, start)
        if not training.to_the_end():
            return "stopped"
        saver.wait()
        _barrier(host)

    if plan.save.best and state.best_step is not None and state.best_step != state.step:
        checkpoint.load_weights(_url(session, state.best_step), session.strategy)
        session.say(f"the artefact is made from step {state.best_step}, the best by evaluation loss")
    for probe in probes:
        probe(session, "end")
    url = write_artifact(session)
    if host.rank == 0:
        host.report({"kind": "artifact", "url": url})
    _barrier(host)
    return "finished"


class _Training:
    """The steps of a run from `state` on. `saved` is the URL of the checkpoint that a reload goes back to."""

    def __init__(
        self, session: Session, learner: Learner, saver: Saver, state: checkpoint.State, saved: str | None
    ) -> None:
        self._session, self._learner, self._saver = session, learner, saver
        self._state, self._saved = state, saved

    def to_the_end(self) -> bool:
        """Make the remaining steps; False when a worker was asked to stop before the last one."""
        state = self._state
        self._session.model.train()
        if not state.evaluated and not self._evaluate():
            return False
        for number, work, waited in _steps(self._session, state.step):
            started = time.perf_counter()
            step = self._learner.step(number, work)
            seconds = {"data_seconds": waited, "step_seconds": time.perf_counter() - started + waited}
            state.step = number + 1
            state.diverged = state.diverged + 1 if step.diverged else 0
            if step.diverged:
                self._recover(step)
            _report(self._session, step.record | seconds)
            stop = step.stop
            state.evaluated = not self._evaluation_is_due()
            if not state.evaluated and not stop:
                stop = not self._evaluate()
            if stop or self._checkpoint_is_due():
                self._save()
            if stop:
                return False
            self._saver.check()
        return True

    def _evaluation_is_due(self) -> bool:
        if not len(self._session.tokens.split("evaluation")):
            return False
        step, plan = self._state.step, self._session.plan
        return step == plan.steps or _due(step, plan.evaluate.every)

    def _checkpoint_is_due(self) -> bool:
        step, plan = self._state.step, self._session.plan
        improved = plan.save.best and self._state.best_step == step
        return step == plan.steps or _due(step, plan.save.every) or improved

    def _evaluate(self) -> bool:
        """Evaluate and keep the best; False when a worker was asked to stop meanwhile."""
        state, session = self._state, self._session
        record = evaluate(session, state.step)
        if record is None:
            return False
        if session.host.rank == 0:
            session.host.report(record)
        if session.plan.save.best and (state.best_loss is None or record["loss"] < state.best_loss):
            state.best_step, state.best_loss = state.step, record["loss"]
        state.evaluated = True
        return True

    def _save(self) -> None:
        state, session = self._state, self._session
        self._saved = _url(session, state.step)
        self._learner.remember(state)
        if session.host.rank == 0:
            session.host.report({"kind": "checkpoint", "step": state.step, "url": self._saved})
        self._saver.save(session.strategy, state)

    def _recover(self, step: Step) -> None:
        """Do what the recipe says of a step that diverged. TrainingError when that is to stop."""
        session, state, policy = self._session, self._state, self._session.plan.divergence
        if policy.action == "stop":
            raise divergence_error(session, step)
        if state.diverged > policy.limit:
            raise divergence_error(session, step, f", and so it went {state.diverged} steps in a row")
        done = "its update is left out"
        if policy.action == "reload":
            if self._saved is None:
                raise divergence_error(session, step, ", and there is no checkpoint yet to go back to")
            done = f"the updates since {posixpath.basename(self._saved)} are left out"
            self._saver.wait()
            _barrier(session.host)
            before = checkpoint.load(self._saved, session.strategy)
            self._learner.restore(before)
        session.say(
            f"step {state.step} diverged (loss {step.record['loss']:.4g}, gradient norm "
            f"{step.record['grad_norm']:.4g}), so {done}; its rows: "
            f"{describe_rows(session, session.batches.batch(state.step - 1))}"
        )


def _steps(session: Session, first: int) -> Iterator[tuple[int, Work, float]]:
    """Each remaining step with this worker's micro-batches, read ahead, and the seconds waited for them."""
    plan, host = session.plan, session.host
    split = session.tokens.split("train")
    pad_to = plan.max_length if plan.compile else None

    def read() -> Iterator[tuple[int, Work]]:
        for step in range(first, plan.steps):
            batch = session.batches.batch(step)
            mine = batching.share(batch, plan.micro_batch_size, host.rank, host.world)
            # A worker without a micro-batch computes a small one that doesn't count, to stay in step.
            smallest = min(batch, key=lambda row: int(session.batches.lengths[list(row)].sum()))
            yield (
                step,
                [
                    (
                        number,
                        collate(split, rows or [smallest], session.model.layout, pad_to=pad_to),
                        bool(rows),
                    )
                    for number, rows in mine
                ],
            )

    source = prefetch(read())
    while True:
        waiting = time.perf_counter()
        try:
            step, work = next(source)
        except StopIteration:
            return
        yield step, work, time.perf_counter() - waiting


def _report(session: Session, record: dict[str, Any]) -> None:
    if session.host.rank != 0:
        return
    seconds = record["step_seconds"]
    record |= {
        "tokens_per_second": record["tokens"] / seconds,
        "supervised_tokens_per_second": record["supervised_tokens"] / seconds,
        "peak_memory_bytes": throughput.peak_memory_bytes(session.device),
    }
    utilisation = throughput.model_flops_utilisation(
        session.device,
        parameters=session.weights,
        trained_fully=session.plan.model.adapter is None,
        tokens=record["tokens"] // session.host.world,
        seconds=seconds,
    )
    if utilisation is not None:
        record["mfu"] = utilisation
    session.host.report(record)


def _url(session: Session, step: int) -> str:
    return session.run.join(checkpoint.FOLDER, checkpoint.name_of(step)).url


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _barrier(host: Host) -> None:
    if host.world > 1:
        dist.barrier()
