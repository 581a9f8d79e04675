"""The answers of one request, merged into a response or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tailor.serve.backend import Backend
from tailor.serve.calls import Call, Piece
from tailor.serve.errors import ApiError, timed_out, unexpected
from tailor.serve.metrics import Metrics
from tailor.serve.responses import DONE, Choice, Response, event


class Answers:
    """One answer per call, generated at the same time. kind: of the response. seconds: time limit of the whole request.

    token_ids: whether a response has them.
    """

    def __init__(
        self,
        backend: Backend,
        kind: str,
        calls: Sequence[Call],
        metrics: Metrics,
        seconds: float,
        *,
        token_ids: bool = False,
    ) -> None:
        self._calls, self._metrics = calls, metrics
        self._started, self._seconds = time.monotonic(), seconds
        self._has_token = False
        self._streams = [backend.answer(call) for call in calls]
        choices = [Choice(index, counts_prompt=call.number == 0) for index, call in enumerate(calls)]
        self._response = Response(
            kind, calls[0].model, choices, logprobs=calls[0].top is not None, token_ids=token_ids
        )

    async def start(self) -> None:
        """Wait until every answer is accepted. Raises the ApiError of the first that is not."""
        first = (stream.__anext__() for stream in self._streams)
        # Streams are closed after all of them have stopped running.
        found = await asyncio.gather(*first, return_exceptions=True)
        for choice, piece in zip(self._response.choices, found, strict=True):
            if isinstance(piece, BaseException):
                await self._close()
                raise piece
            choice.take(piece)

    async def whole(self) -> dict[str, Any]:
        """The response when all answers are finished."""
        await self.start()
        try:
            async for _ in self._pieces():
                pass
            return self._response.whole()
        finally:
            await self._close()

    async def events(self, *, includes_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events, after `start`. An error ends the stream with an event that has `error`, and without [DONE]."""
        response = self._response
        try:
            if response.is_chat:
                for choice in response.choices:
                    yield event(response.first_chunk(choice))
            async for choice, piece in self._pieces():
                if piece.text or piece.reasoning or piece.scored or piece.finish_reason is not None:
                    yield event(response.chunk(choice, piece))
            if includes_usage:
                yield event(response.usage_chunk())
            yield DONE
        except ApiError as error:
            yield event(error.body)
        except Exception as error:
            yield event(unexpected("the answer could not be finished", error).body)
        finally:
            await self._close()

    async def _pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
        """The pieces of all answers as they come."""
        queue: asyncio.Queue[tuple[Choice, Piece] | BaseException | None] = asyncio.Queue()

        async def forward(choice: Choice, stream: AsyncIterator[Piece]) -> None:
            try:
                async for piece in stream:
                    await queue.put((choice, piece))
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        pairs = zip(self._response.choices, self._streams, strict=True)
        tasks = [asyncio.ensure_future(forward(*pair)) for pair in pairs]
        try:
            unfinished = len(tasks)
            while unfinished:
                left = self._started + self._seconds - time.monotonic()
                try:
                    item = await asyncio.wait_for(queue.get(), max(left, 0))
                except asyncio.TimeoutError:
                    raise timed_out(self._seconds) from None
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    unfinished -= 1
                    continue
                choice, piece = item
                self._count(choice, piece)
                choice.take(piece)
                yield choice, piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, choice: Choice, piece: Piece) -> None:
        if not self._has_token:
            self._has_token = True
            self._metrics.first_token.observe(time.monotonic() - self._started)
        if piece.finish_reason is not None:
            model = self._calls[0].model
            self._metrics.prompt_tokens.labels(model).inc(piece.prompt_tokens)
            self._metrics.generated_tokens.labels(model).inc(piece.tokens)

    async def _close(self) -> None:
        """Stop generating what is not finished."""
        for stream in self._streams:
            await stream.aclose()  # type: ignore[attr-defined]
