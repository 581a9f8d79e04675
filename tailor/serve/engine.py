"""The engine: one thread that holds the models, and answers the requests of all threads in continuous batches.

Each adapter of a network has a batch of its own, because a batch of mixed adapters (PEFT's `adapter_names`) is cut into
parts by adapter, whose matrix shapes, and so whose last bits, depend on the other requests. A step of the engine runs one
forward pass per adapter in use.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tailor.artifacts.shared_base import LoadedRun, Network
from tailor.evaluate import continuous, generation
from tailor.evaluate.continuous import Answer, ContinuousBatch
from tailor.evaluate.generation import Sampling
from tailor.serve.errors import ApiError, draining, failed, overloaded, unexpected


@dataclass(frozen=True)
class Token:
    """The next token of an answer. finish_reason: None before the last one; the token of `stop` is a stop token.

    logprob, top: as in `Answer`, if the request asks for them.
    """

    id: int
    finish_reason: str | None
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Ticket:
    """A request in the engine. number: of the answer, for several to one prompt.

    deliver: called in the engine's thread with each token, or with the error that ends it.
    """

    run: LoadedRun
    answer: Answer
    sampling: Sampling
    number: int
    deliver: Callable[[Token | ApiError], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop generating; the row is free after the current step. Has no effect on a finished answer."""
        self.cancelled.set()

    def deliver_last(self) -> None:
        answer = self.answer
        self.deliver(Token(answer.last, answer.finish_reason, answer.logprob, tuple(answer.top)))


class Engine:
    """Answers requests. runs: all on this machine. max_waiting: requests that wait for a row; further ones are refused."""

    def __init__(self, runs: Sequence[LoadedRun], *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lanes = {run.name: _Lane(run) for run in runs if run.generator is not None}
        self._tasks: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._decoding: dict[int, ExitStack] = {}
        self.steps = 0
        """Decoding steps so far, over all batches."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values()) + len(self._tasks)

    @property
    def active(self) -> int:
        return sum(len(lane.tickets) for lane in self._lanes.values())

    def is_batched(self, run: LoadedRun) -> bool:
        """Whether a model answers in continuous batches; others have no log-probabilities."""
        return self._lanes[run.name].is_batched

    def submit(
        self,
        run: LoadedRun,
        answer: Answer,
        sampling: Sampling,
        number: int,
        deliver: Callable[[Token | ApiError], None],
    ) -> Ticket:
        """Queue a prompt. ApiError as `admit`."""
        answer.draw = sampling.draw([number])
        ticket = Ticket(run, answer, sampling, number, deliver)
        with self._wake:
            self.admit()
            self._lanes[run.name].waiting.append(ticket)
            self._wake.notify()
        return ticket

    def call(self, function: Callable[[], Any], done: Callable[[Any], None]) -> threading.Event:
        """Queue a function for the engine's thread, between two steps. ApiError as `admit`.

        done: called there with its result or its exception. Returns an event that cancels the call while it waits.
        """
        cancelled = threading.Event()

        def task() -> None:
            if cancelled.is_set():
                return
            try:
                done(function())
            except Exception as error:
                done(error)

        with self._wake:
            self.admit()
            self._tasks.append(task)
            self._wake.notify()
        return cancelled

    def close(self) -> None:
        """Refuse new requests, finish the others, and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def admit(self) -> None:
        """ApiError when the queue is full, or the engine is closing or has stopped."""
        if self._closing:
            raise draining()
        if not self.is_alive:
            raise failed("the engine has stopped")
        if (waiting := self.waiting) >= self._max_waiting:
            raise overloaded(waiting)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self.waiting or self.active or self._closing):
                    self._rest()
                    self._wake.wait()
                if self._closing and not (self.waiting or self.active):
                    self._rest()
                    return
                task = self._tasks.popleft() if self._tasks else None  # one, as of the prompts
            if task is not None:
                self._rest()  # other uses of a model need another attention
                task()
            for lane in self._lanes.values():
                try:
                    self._advance(lane)
                except Exception as error:  # no error of one run ends the thread
                    lane.fail(error)

    def _advance(self, lane: _Lane) -> None:
        """Start waiting prompts of a run while there is room, and make one step. Errors end the requests that they concern."""
        lane.drop_cancelled()
        if not (lane.waiting or lane.tickets):
            return
        network = lane.run.network
        with network.with_adapter(lane.run.adapter):
            if not lane.is_batched:
                self._rest()
                lane.answer_alone()
                return
            self._prepare(network)
            lane.start_one()
            if lane.tickets:
                lane.step()
                self.steps += 1

    def _prepare(self, network: Network) -> None:
        """Enter the decoding mode of a network, which `_rest` leaves again."""
        if id(network) not in self._decoding:
            stack = self._decoding[id(network)] = ExitStack()
            stack.enter_context(continuous.decoding(network.model))

    def _rest(self) -> None:
        while self._decoding:
            self._decoding.popitem()[1].close()


class _Lane:
    """The requests of one run: those that wait, and those with a row in its batch."""

    def __init__(self, run: LoadedRun) -> None:
        assert run.generator is not None
        self.run, self._loaded = run, run.generator
        self.waiting: deque[Ticket] = deque()
        self.tickets: list[Ticket] = []
        with run.network.with_adapter(run.adapter):
            sizes = continuous.row_sizes(self._loaded.model)
        self.is_batched = bool(sizes)
        self._batch = ContinuousBatch(self._loaded.model, self._loaded.pad_id, sizes)

    def drop_cancelled(self) -> None:
        for ticket in [ticket for ticket in self.tickets if ticket.cancelled.is_set()]:
            self._batch.remove(ticket.answer)
            self.tickets.remove(ticket)
        for ticket in [ticket for ticket in self.waiting if ticket.cancelled.is_set()]:
            self.waiting.remove(ticket)

    def start_one(self) -> None:
        """Read the prompt that waits longest, if there is a row. Only one, so that long prompts do not stop the others."""
        if not (self.waiting and self._batch.has_room):
            return
        ticket = self.waiting.popleft()
        try:
            self._batch.start(ticket.answer)
        except Exception as error:  # too little memory for this prompt, for example
            ticket.answer.cache = None
            ticket.deliver(unexpected("the prompt could not be read", error))
            return
        if ticket.answer.finish_reason is None:
            self.tickets.append(ticket)
        ticket.deliver_last()

    def step(self) -> None:
        self._batch.step()
        stepped = list(self.tickets)
        self.tickets = [ticket for ticket in stepped if ticket.answer.finish_reason is None]
        for ticket in stepped:
            ticket.deliver_last()

    def fail(self, error: Exception) -> None:
        """End the answers that are being generated, or else the one that waits longest; the others get their turn."""
        tickets, self.tickets = self.tickets, []
        if not tickets and self.waiting:
            tickets = [self.waiting.popleft()]
        answer = unexpected("the answer could not be continued", error)
        for ticket in tickets:
            self._batch.remove(ticket.answer)
            ticket.deliver(answer)

    def answer_alone(self) -> None:
        """Answer the prompt that waits longest without a batch, for a model without `row_sizes`."""
        if not self.waiting:
            return
        ticket = self.waiting.popleft()
        answer = ticket.answer

        def take(token: int) -> None:
            if ticket.cancelled.is_set():
                raise _Cancelled
            answer.note(token)
            ticket.deliver_last()

        self.tickets = [ticket]
        try:
            generation.generate(
                self._loaded.model,
                [answer.prompt],
                max_new_tokens=answer.max_new_tokens,
                stop_ids=sorted(answer.stop_ids),
                batch_size=1,
                pad_id=self._loaded.pad_id,
                sampling=ticket.sampling,
                numbers=[ticket.number],
                on_token=take,
            )
        except _Cancelled:
            pass
        except Exception as error:
            ticket.deliver(unexpected("the answer could not be generated", error))
        finally:
            self.tickets = []


class _Cancelled(Exception):
    """Ends the generation of a cancelled answer."""
