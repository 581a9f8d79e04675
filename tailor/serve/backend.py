"""What the HTTP server asks of the models, in this process or in a Ray replica: answers as streams, vectors and scores."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from tailor.artifacts.shared_base import LoadedRun
from tailor.encode.formats.messages import MESSAGES
from tailor.encode.records import Chat, RowError
from tailor.encode.replies.reading import reader
from tailor.encode.replies.reply import Reply
from tailor.errors import TailorError
from tailor.evaluate.continuous import Answer
from tailor.evaluate.generation import room
from tailor.serve.calls import Call, EmbedCall, Load, Piece, RerankCall, ScoredToken
from tailor.serve.engine import Engine, Token
from tailor.serve.errors import ApiError, bad_request, failed, of_tailor, unexpected, unknown_model
from tailor.serve.text import TextStream


class Backend(Protocol):
    """All methods raise ApiError."""

    async def models(self) -> dict[str, list[str]]:
        """Name of each model -> what it does: `chat`, `completions`, `embeddings`, `rerank`."""
        ...

    def answer(self, call: Call) -> AsyncIterator[Piece]:
        """The pieces of an answer. Leaving the iterator stops the generation."""
        ...

    async def embed(self, call: EmbedCall) -> tuple[list[list[float]], int]:
        """A vector per text, and the number of tokens of all texts."""
        ...

    async def rerank(self, call: RerankCall) -> list[float]:
        """A score per document; a higher one is more relevant."""
        ...

    async def load(self) -> Load: ...


class LocalBackend:
    """The models in this process."""

    def __init__(self, runs: Sequence[LoadedRun], *, max_waiting: int) -> None:
        self._runs: Mapping[str, LoadedRun] = {run.name: run for run in runs}
        self._engine = Engine(runs, max_waiting=max_waiting)

    def close(self) -> None:
        """Finish the accepted requests, and refuse others."""
        self._engine.close()

    @property
    def is_alive(self) -> bool:
        """Whether requests can be answered: the engine's thread runs."""
        return self._engine.is_alive

    async def models(self) -> dict[str, list[str]]:
        return {name: abilities(run) for name, run in self._runs.items()}

    async def load(self) -> Load:
        if not self._engine.is_alive:
            raise failed("the engine has stopped")
        return Load(self._engine.active, self._engine.waiting, self._engine.steps)

    async def answer(self, call: Call) -> AsyncIterator[Piece]:
        run = self._run(call.model, "chat" if call.messages is not None else "completions")
        if call.top is not None and not self._engine.is_batched(run):
            raise bad_request(
                f"the model {call.model} does not support logprobs: it cannot answer in continuous batches",
                "logprobs",
            )
        self._engine.admit()  # before the tokenizer has worked for nothing
        if run.retrieval is None:
            answer = await asyncio.to_thread(_answer_of, run, call)
        else:  # its embedder is one model, which sets the number of torch's threads
            answer = await self._call(lambda: _answer_of(run, call), "messages")
        assert run.generator is not None
        tokenizer = run.generator.tokenizer
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Token | ApiError] = asyncio.Queue()

        def deliver(event: Token | ApiError) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        ticket = self._engine.submit(run, answer, call.sampling, call.number, deliver)
        is_chat = call.messages is not None
        text = TextStream(tokenizer, call.stops, after=None if is_chat else answer.prompt)
        reads = reader(tokenizer, answer.prompt, tools=bool(call.tools)) if is_chat else None
        count = len(answer.prompt)
        try:
            yield Piece(prompt_tokens=count)
            tokens = 0
            while True:
                event = await events.get()
                if isinstance(event, ApiError):
                    raise event
                tokens += 1
                ended = event.finish_reason == "stop"
                piece = "" if ended else text.take(event.id)
                if event.finish_reason is not None:
                    piece += text.end()
                finish = "stop" if text.stopped else event.finish_reason
                new = Reply(piece) if reads is None else reads.take(piece, ended=finish is not None)
                scored: tuple[ScoredToken, ...] = ()
                if call.top is not None and not ended:
                    top = tuple((tokenizer.decode([id]), logprob) for id, logprob in event.top)
                    scored = (ScoredToken(tokenizer.decode([event.id]), event.logprob, top),)
                ids = () if ended else (event.id,)
                yield Piece(new.content, finish, count, tokens, ids, scored, new.reasoning, new.calls)
                if finish is not None:
                    return
        finally:
            ticket.cancel()

    async def embed(self, call: EmbedCall) -> tuple[list[list[float]], int]:
        embedder = self._run(call.model, "embeddings").embedder
        assert embedder is not None
        size = embedder.settings.dimension
        if call.dimensions is not None and call.dimensions > size:
            raise bad_request(f"the embeddings of {call.model} have {size} dimensions", "dimensions")

        def vectors() -> tuple[list[list[float]], int]:
            tokens = embedder.tokenize(call.texts, call.instruction)
            if not call.truncate:
                lengths = [len(one.input_ids) + one.cut for one in tokens]
                _require_readable(lengths, embedder.max_length, "input")
            embedder.dimension = call.dimensions or size
            try:
                found = embedder.encode(call.texts, call.instruction)
            finally:
                embedder.dimension = size
            return found.tolist(), sum(len(one.input_ids) for one in tokens)

        return await self._call(vectors, "input")  # type: ignore[no-any-return]

    async def rerank(self, call: RerankCall) -> list[float]:
        reranker = self._run(call.model, "rerank").reranker
        assert reranker is not None
        pairs = [(call.query, document) for document in call.documents]

        def scores() -> list[float]:
            if not call.truncate:
                _require_readable(reranker.lengths(pairs), reranker.max_length, "documents")
            return reranker(pairs)

        return await self._call(scores, "documents")  # type: ignore[no-any-return]

    def _run(self, name: str, ability: str) -> LoadedRun:
        run = self._runs.get(name)
        if run is None:
            raise unknown_model(name, list(self._runs))
        if ability not in (can := abilities(run)):
            raise bad_request(
                f"the model {name} does not support {ability}; it supports {', '.join(can)}", "model"
            )
        return run

    async def _call(self, function: Callable[[], Any], param: str) -> Any:
        """The result of a function that runs in the engine's thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def resolve(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        cancelled = self._engine.call(function, lambda result: loop.call_soon_threadsafe(resolve, result))
        try:
            result = await future
        finally:
            cancelled.set()  # a request that nobody waits for any more
        if isinstance(result, ApiError):
            raise result
        if isinstance(result, TailorError):
            raise of_tailor(result, param) from result
        if isinstance(result, Exception):
            raise unexpected("the request could not be computed", result) from result
        return result


def abilities(run: LoadedRun) -> list[str]:
    """What a model does, as the last parts of the paths of the interface."""
    found = []
    if run.generator is not None:
        found = ["chat", "completions"] if run.generator.tokenizer.template is not None else ["completions"]
    return found + ["embeddings"] * (run.embedder is not None) + ["rerank"] * (run.reranker is not None)


def _require_readable(lengths: Sequence[int], limit: int, param: str) -> None:
    """ApiError for the first of the texts in the field `param`, or of its pairs with the query, that the model cannot read whole.

    lengths, limit: in tokens.
    """
    for number, length in enumerate(lengths):
        if length > limit:
            what = f"{param}.{number}" + (" with the query" if param == "documents" else "")
            raise bad_request(
                f"{what} has {length} tokens, and the model reads at most {limit}; shorten it, or send truncate: true",
                param,
                "context_length_exceeded",
            )


def _answer_of(run: LoadedRun, call: Call) -> Answer:
    """The prompt of a request as token ids. ApiError when it cannot be used."""
    loaded = run.generator
    assert loaded is not None
    param = "prompt" if call.messages is None else "messages"
    try:
        if call.messages is not None:
            chat = _chat(call.messages, call.tools)
            ids = _shortened(run, loaded.prompt_ids(chat.messages, chat.tools), call.max_tokens)
        elif isinstance(call.prompt, str):
            ids = _shortened(run, loaded.tokenizer.encode_prompt(call.prompt), call.max_tokens)
        else:
            ids = list(call.prompt or ())
            size = loaded.model.get_input_embeddings().weight.shape[0]
            if any(token >= size for token in ids):
                raise bad_request(f"a token id is not below {size}, the size of the vocabulary", param)
        if not ids:
            raise bad_request("the prompt has no tokens", param)
        limit = loaded.context
        if limit is not None and len(ids) >= limit:
            raise bad_request(
                f"the prompt has {len(ids)} tokens, and the context of the model is {limit} tokens",
                param,
                "context_length_exceeded",
            )
        max_new_tokens = room(limit, len(ids), call.max_tokens)
    except TailorError as error:
        raise of_tailor(error, param) from error
    return Answer(ids, max_new_tokens, frozenset(loaded.stop_ids), top_logprobs=call.top)


def _shortened(run: LoadedRun, ids: list[int], max_tokens: int) -> list[int]:
    """A prompt as `tailor generate` shortens it, with a line on stderr."""
    if run.retrieval is None:
        return ids
    assert run.generator is not None
    found = run.retrieval.shorten(ids, run.generator.tokenizer, max_tokens)
    if found is None:
        return ids
    print(f"{run.name}: {found.line()}", file=sys.stderr, flush=True)
    return found.ids


def _chat(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Chat:
    """A conversation as in training data. ApiError when it is none."""
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    try:
        chat = MESSAGES.record(row, {})
    except RowError as error:
        raise bad_request(error.detail or error.reason, "messages") from error
    assert isinstance(chat, Chat)
    if chat.messages[-1]["role"] == "assistant":
        raise bad_request(
            "the last message is one of the assistant, which there is nothing to answer to", "messages"
        )
    return chat
