"""The training loop. There is one, for every method, strategy and host."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tailor import batches as batching
from tailor.errors import TrainingError
from tailor.methods import load_method
from tailor.models.load import load_for_training
from tailor.plan import Plan
from tailor.store import Store
from tailor.tokens import TokenStore
from tailor.train import checkpoint, throughput
from tailor.train.artifact import write_artifact
from tailor.train.evaluation import evaluate
from tailor.train.host import Host
from tailor.train.optimizer import (
    build_optimizer,
    learning_rate,
    set_learning_rate,
    trained_parameters,
)
from tailor.train.prefetch import prefetch
from tailor.train.reference import open_reference
from tailor.train.session import Probe, Session
from tailor.train.strategy import DataParallel
from tailor.train.work import Totals, Work, read_share, survey


def run(plan: Plan, host: Host, probes: Sequence[Probe] = ()) -> None:
    """Train from the beginning or the host's checkpoint to the plan's last step, and write the artefact."""
    session = open_session(plan, host)
    _compile(session)
    strategy = DataParallel(session.model, session.method, host)
    optimizer = build_optimizer(plan.optim, session.model)
    scaler = torch.amp.GradScaler(session.device.type, enabled=plan.precision == "fp16")
    state = checkpoint.State()
    if (start := host.resume()) is not None:
        state = checkpoint.load(start, session.model, optimizer)
        scaler.load_state_dict(state.scaler)
        session.say(f"going on from step {state.step}")
    for probe in probes:
        probe(session, "start")

    session.model.train()
    for step, micro_batches, waited in _steps(session, state.step):
        started = time.perf_counter()
        record = _step(session, strategy, optimizer, scaler, step, micro_batches)
        record |= {"data_seconds": waited, "step_seconds": time.perf_counter() - started + waited}
        state.step = step + 1
        _report_step(session, record)
        _after_step(session, optimizer, scaler, state)

    if plan.save.best and state.best_step is not None and state.best_step != state.step:
        best = session.run.join(checkpoint.FOLDER, checkpoint.name_of(state.best_step))
        checkpoint.load_weights(best, session.model)
        session.say(f"the artefact is made from step {state.best_step}, the best by evaluation loss")
    for probe in probes:
        probe(session, "end")
    if host.rank == 0:
        host.report({"kind": "artifact", "url": write_artifact(session)})
    if host.world > 1:
        dist.barrier()


def open_session(plan: Plan, host: Host) -> Session:
    """Open the data and load the model, ready to train."""
    tokens = TokenStore.open(plan.tokens_url)
    spec = batching.BatchSpec(
        seed=plan.seed,
        max_length=plan.max_length,
        pack=plan.pack,
        batch_size=plan.batch_size,
        batch_tokens=plan.batch_tokens,
        weights=plan.weights,
    )
    started = time.perf_counter()
    model = load_for_training(
        plan.model,
        device=host.device,
        precision=plan.precision,
        frozen_dtype=plan.frozen_dtype,
        pack=plan.pack,
        activation_checkpointing=plan.activation_checkpointing,
        static_shapes=plan.compile,
        seed=plan.seed,
    )
    trained, total = model.weights()
    evaluation = batching.of_split(tokens.split("evaluation"), spec)
    batches = batching.of_split(tokens.split("train"), spec)
    reference, values = open_reference(
        plan, host, tokens, model, {"train": batches, "evaluation": evaluation}
    )
    session = Session(
        plan=plan,
        host=host,
        run=Store(plan.run_url),
        tokens=tokens,
        batches=batches,
        evaluation=evaluation,
        method=load_method(plan.method, reference),
        model=model,
        weights=total,
        reference=values,
    )
    session.say(
        f"model loaded in {time.perf_counter() - started:.1f} s: "
        f"{trained:,} of {total:,} weights are trained, {plan.precision}, "
        f"{model.base.config._attn_implementation} attention"
    )
    return session


def _compile(session: Session) -> None:
    if session.plan.compile:
        session.model.base.get_decoder().compile()


def _steps(session: Session, first: int) -> Iterator[tuple[int, list[Work], float]]:
    """Each remaining step with this worker's micro-batches, read ahead, and the seconds waited for them."""
    collator = session.collator("train")

    def read() -> Iterator[tuple[int, list[Work]]]:
        for step in range(first, session.plan.steps):
            batch = session.batches.batch(step)
            yield step, list(read_share(session, session.batches, collator, batch))

    source = prefetch(read())
    while True:
        waiting = time.perf_counter()
        try:
            step, work = next(source)
        except StopIteration:
            return
        yield step, work, time.perf_counter() - waiting


def _step(
    session: Session,
    strategy: DataParallel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    work: list[Work],
) -> dict[str, Any]:
    """One optimizer step. The loss is summed, then divided by the units of the whole batch."""
    plan, device = session.plan, session.device
    batch = session.batches.batch(step)
    units = session.method.units(session.batches, batch)
    surveyed = survey(session, work, max(1, units))
    totals = Totals(device)
    slots = real = 0
    for index, (number, micro_batch, counts) in enumerate(work):
        # Dropout depends on the micro-batch, not on the worker that computes it.
        torch.manual_seed(_seed(plan.seed, step, number))
        last = index == len(work) - 1
        with strategy.accumulating() if not last else nullcontext():
            with session.autocast():
                summed = strategy.loss(micro_batch.to(device), surveyed)
            loss = summed.loss * float(counts)
            scaler.scale(strategy.scale(loss, max(1, units))).backward()
        totals.add(summed, counts)
        slots += micro_batch.input_ids.numel() * counts
        real += int(sum(session.batches.lengths[list(row)].sum() for row in _rows(batch, plan, number)))
    sums = totals.over_workers(session.host.world)
    mean = sums["loss"] / max(1, units)
    scaler.unscale_(optimizer)
    norm = _clip(session, plan.optim.max_grad_norm)
    if not math.isfinite(mean) or (plan.precision != "fp16" and not math.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: the loss is {mean}, the gradient norm {norm}; "
            f"its rows: {_describe_rows(session, batch)}",
            mend="lower optim.learning_rate, or look at these rows with `tailor data preview`",
        )
    rate = learning_rate(plan.optim, step, plan.steps, plan.warmup_steps)
    set_learning_rate(optimizer, rate)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return {
        "kind": "train",
        "step": step + 1,
        "epoch": session.batches.progress(step + 1),
        "loss": mean,
        **session.method.metrics(sums, max(1, units)),
        "learning_rate": rate,
        "grad_norm": norm,
        "tokens": session.batches.tokens(batch),
        "supervised_tokens": session.batches.units(batch),
        "padding": 1 - real / slots if slots else 0.0,
    }


def _report_step(session: Session, record: dict[str, Any]) -> None:
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


def _after_step(
    session: Session, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, state: checkpoint.State
) -> None:
    """Evaluate and save where the plan says so, and at the end."""
    plan, host, step = session.plan, session.host, state.step
    ends = step == plan.steps
    if len(session.tokens.split("evaluation")) and (ends or _due(step, plan.evaluate.every)):
        record = evaluate(session, step)
        if host.rank == 0:
            host.report(record)
        improved = state.best_loss is None or record["loss"] < state.best_loss
        if plan.save.best and improved:
            state.best_step, state.best_loss = step, record["loss"]
    if ends or _due(step, plan.save.every) or (plan.save.best and state.best_step == step):
        state.scaler = scaler.state_dict()
        url = session.run.join(checkpoint.FOLDER, checkpoint.name_of(step)).url
        if host.rank == 0:
            checkpoint.save(session.run, session.model, optimizer, state)
            checkpoint.remove_old(session.run, keep=plan.save.keep, best_step=state.best_step)
        host.report({"kind": "checkpoint", "step": step, "url": url}, checkpoint=url)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _clip(session: Session, max_norm: float | None) -> float:
    """L2 norm of all gradients before they are scaled down to `max_norm`."""
    parameters = [p for _, p in trained_parameters(session.model)]
    limit = math.inf if max_norm is None else max_norm
    return float(torch.nn.utils.clip_grad_norm_(parameters, limit))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _rows(batch: batching.Batch, plan: Plan, number: int) -> batching.Batch:
    return batch[number * plan.micro_batch_size : (number + 1) * plan.micro_batch_size]


def _describe_rows(session: Session, batch: batching.Batch, limit: int = 8) -> str:
    split = session.tokens.split("train")
    examples = [example for row in batch for example in row]
    named = [f"source {split.source[i]} row {split.row[i]}" for i in examples[:limit]]
    more = len(examples) - limit
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
