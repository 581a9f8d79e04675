"""The training loop, the same for every method, strategy and host."""

from __future__ import annotations

import math
import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch.distributed as dist

from tailor.methods.base import MicroBatch
from tailor.models.compiled import compilation_errors, compile_layers
from tailor.plan import Plan
from tailor.train import checkpoint, throughput
from tailor.train.artifact import write_artifact
from tailor.train.carried import begin, carry_over, checkpoint_url, other_run
from tailor.train.early_stopping import watch
from tailor.train.evaluation import evaluate
from tailor.train.host import Host
from tailor.train.prefetch import prefetch
from tailor.train.saving import Saver
from tailor.train.session import Probe, Session, open_session
from tailor.train.step import StepResult, StepRunner, describe_rows, divergence_error, read_micro_batches
from tailor.train.warm_start import warm_start


def run(plan: Plan, host: Host, probes: Sequence[Probe] = ()) -> Literal["finished", "stopped"]:
    """Train to the plan's last step, from the beginning or from the host's checkpoint, and write the artifact.

    If the host asks to stop, finish the current step, save a checkpoint and return "stopped".
    """
    session = open_session(plan, host)
    start = _resume_url(host)
    if plan.compile:
        compile_layers(session.model.base)
    runner = StepRunner(session)
    if start is None and plan.model.warm_start is not None:
        session.say(f"starting from the weights of {warm_start(plan.model.warm_start, session.strategy)}")
    state = begin(session)
    if start is not None:
        state = checkpoint.load(start, session.strategy)
        runner.restore(state)
        state = carry_over(session, state, start)
        session.say(f"resuming from step {state.step}")
    for probe in probes:
        probe(session, "start", state.step)

    with (
        compilation_errors() if plan.compile else nullcontext(),
        Saver(session.run, keep=plan.save.keep, durable=host.flush, say=session.say) as saver,
    ):
        training = _Training(session, runner, saver, state, start, probes)
        if not training.run_to_end():
            return "stopped"
        saver.wait()
        if host.rank == 0:
            host.report({"kind": "saved", "step": state.step})
        _barrier(host)

    chosen = state.best_step if plan.save.best and state.best_step is not None else state.step
    final: AbstractContextManager[Any] = session.strategy.evaluation_weights()
    if chosen != state.step:
        checkpoint.load_weights(checkpoint_url(session, chosen, state.best_run), session.strategy)
        final = nullcontext()  # a checkpoint has the weights to evaluate
        session.say(f"writing the artifact from step {chosen}, which has the lowest evaluation loss")
    with final:
        for probe in probes:
            probe(session, "end", state.step)
        url = write_artifact(session)
    if host.rank == 0:
        host.report({"kind": "artifact", "url": url, "made_from": chosen})
    _barrier(host)
    return "finished"


class _Training:
    """The remaining steps of a run. state: the progress so far; start: URL of the checkpoint that it comes from, if any."""

    def __init__(
        self,
        session: Session,
        runner: StepRunner,
        saver: Saver,
        state: checkpoint.State,
        start: str | None,
        probes: Sequence[Probe],
    ) -> None:
        self._session, self._runner, self._saver = session, runner, saver
        self._state, self._probes = state, probes
        self._first = state.step
        self._first_run = None if start is None else other_run(session, start)

    def run_to_end(self) -> bool:
        """Run the remaining steps. False if a worker was asked to stop before the last one."""
        state = self._state
        self._session.model.train()
        if not state.evaluated and self._evaluation_is_due() and not self._evaluate():
            return False
        if state.stopped_early:
            return True
        for number, micro_batches, waited in _steps(self._session, state.step):
            started = time.perf_counter()
            throughput.start_peak(self._session.device)
            step = self._runner.step(number, micro_batches)
            seconds = {"data_seconds": waited, "step_seconds": time.perf_counter() - started + waited}
            state.step = number + 1
            state.diverged = state.diverged + 1 if step.diverged else 0
            if step.diverged:
                self._recover(step)
            _report(self._session, step.record | seconds, step.tokens)
            stop = step.stop
            state.evaluated = not self._evaluation_is_due()
            if not state.evaluated and not stop:
                stop = not self._evaluate()
            if stop or self._checkpoint_is_due():
                self._save()
            if stop:
                return False
            if state.stopped_early:
                return True
            self._saver.check()
        return True

    def _evaluation_is_due(self) -> bool:
        step, plan = self._state.step, self._session.plan
        if not len(self._session.tokens.split("evaluation")) and plan.evaluate.retrieval is None:
            return False
        return step == plan.steps or _due(step, plan.evaluate.every)

    def _checkpoint_is_due(self) -> bool:
        step, plan = self._state.step, self._session.plan
        improved = plan.save.best and self._state.best_step == step
        last = step == plan.steps or self._state.stopped_early
        return last or _due(step, plan.save.every) or improved

    def _evaluate(self) -> bool:
        """Evaluate, remember the best step and call the probes. False if a worker was asked to stop during the evaluation."""
        state, session = self._state, self._session
        metrics: dict[str, Any] = {}
        with session.strategy.evaluation_weights():
            if len(session.tokens.split("evaluation")):
                record = self._evaluate_loss()
                if record is None:
                    return False
                metrics |= record
            for probe in self._probes:
                metrics |= probe(session, "evaluation", state.step) or {}
        watch(session, state, metrics)
        state.evaluated = True
        return True

    def _evaluate_loss(self) -> dict[str, Any] | None:
        state, session = self._state, self._session
        throughput.release(session.device)
        throughput.start_peak(session.device)
        record = evaluate(session, state.step)
        if record is None:
            return None
        record["peak_memory_bytes"] = throughput.peak_memory_bytes(session.device)
        throughput.release(session.device)
        if session.host.rank == 0:
            session.host.report(record)
        better = math.isfinite(record["loss"]) and (
            state.best_loss is None or record["loss"] < state.best_loss
        )
        if session.plan.save.best and better:
            state.best_step, state.best_loss = state.step, record["loss"]
            # An evaluation at the step of another run's checkpoint: this run has none of that step.
            state.best_run = self._first_run if state.step == self._first else None
        return record

    def _save(self) -> None:
        state, session = self._state, self._session
        if session.plan.divergence.action == "reload" and self._checkpoint_is_due():
            # Not a checkpoint that a stop request caused: what a reload loads must not depend on when a run was stopped.
            state.reload_from, state.reload_run = state.step, None
        self._runner.remember(state)
        if session.host.rank == 0:
            url = checkpoint_url(session, state.step, None)
            session.host.report({"kind": "checkpoint", "step": state.step, "url": url})
        self._saver.save(session.strategy, state)

    def _recover(self, step: StepResult) -> None:
        """Apply `train.divergence` to a step that diverged. TrainingError if the run is to stop."""
        session, state, policy = self._session, self._state, self._session.plan.divergence
        if policy.action == "stop":
            raise divergence_error(session, step)
        if state.diverged > policy.limit:
            raise divergence_error(
                session,
                step,
                f" ({state.diverged} diverged steps in a row; train.divergence.limit is {policy.limit})",
            )
        effect = "its update is skipped"
        if policy.action == "reload":
            if state.reload_from is None:
                raise divergence_error(session, step, " (action: reload, but there is no checkpoint yet)")
            back = checkpoint_url(session, state.reload_from, state.reload_run)
            effect = f"the updates since {posixpath.basename(back)} are discarded"
            self._saver.wait()
            _barrier(session.host)
            # Weights and optimizer only: the step number continues, so that the next batches are others.
            loaded = checkpoint.load(back, session.strategy)
            self._runner.restore(loaded)
        session.say(
            f"step {state.step} diverged (loss {step.record['loss']:.4g}, gradient norm "
            f"{step.record['grad_norm']:.4g}): {effect}; its rows: "
            f"{describe_rows(session, session.batches.batch(state.step - 1))}"
        )


def _steps(session: Session, first: int) -> Iterator[tuple[int, list[MicroBatch], float]]:
    """Yield (step, this worker's micro-batches, seconds waited for them) for each remaining step. Reads ahead."""

    def read() -> Iterator[tuple[int, list[MicroBatch]]]:
        for step in range(first, session.plan.steps):
            batch, collator = session.batches.batch(step), session.collator("train", step)
            yield step, list(read_micro_batches(session, session.batches, collator, batch))

    source = prefetch(read())
    while True:
        waiting = time.perf_counter()
        try:
            step, micro_batches = next(source)
        except StopIteration:
            return
        yield step, micro_batches, time.perf_counter() - waiting


def _report(session: Session, record: dict[str, Any], computed: int) -> None:
    """computed: tokens of the passes of all workers."""
    if session.host.rank != 0:
        return
    seconds = record["step_seconds"]
    record |= {
        "tokens_per_second": record["tokens"] / seconds,
        "supervised_tokens_per_second": record["supervised_tokens"] / seconds,
        "peak_memory_bytes": throughput.peak_memory_bytes(session.device),
    }
    utilization = throughput.model_flops_utilization(
        session.device,
        parameters=session.parameters.active,
        trained_fully=session.plan.model.adapter is None and session.plan.model.beacon is None,
        tokens=computed // session.host.world,
        seconds=seconds,
    )
    if utilization is not None:
        record["mfu"] = utilization
    session.host.report(record)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _resume_url(host: Host) -> str | None:
    """URL of the checkpoint to resume from, as rank 0 sees it: other machines may still see an older state of a shared
    folder."""
    urls = [host.resume()]
    if host.world > 1:
        dist.broadcast_object_list(urls, src=0, device=host.device)
    return urls[0]


def _barrier(host: Host) -> None:
    if host.world > 1:
        dist.barrier()
