"""The HTTP server: OpenAI's paths, on top of a backend. It holds no model."""

from __future__ import annotations

import asyncio
import base64
import difflib
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tailor.evaluate.generation import Sampling
from tailor.serve import schemas
from tailor.serve.answers import Answers
from tailor.serve.backend import Backend
from tailor.serve.calls import Call, EmbedCall, RerankCall
from tailor.serve.errors import ApiError, bad_request, failed, timed_out, unexpected, unknown_model
from tailor.serve.limits import check_key, read_json
from tailor.serve.metrics import Metrics
from tailor.spec.serving import Limits

Parsed = TypeVar("Parsed", bound=schemas.Request)
Result = TypeVar("Result")
CLOSED = 499
"""The status in the metrics of a request whose client has gone, as nginx counts it."""


def make_app(backend: Backend, limits: Limits, key: str | None) -> FastAPI:
    """The application. key: the API key that every request below /v1 must have; None: no key is needed."""
    return _Server(backend, limits, key).app


class _Server:
    def __init__(self, backend: Backend, limits: Limits, key: str | None) -> None:
        self._backend, self._limits, self._key = backend, limits, key
        self._metrics, self._started = Metrics(), int(time.time())
        self.app = FastAPI(title="tailor", docs_url=None, redoc_url=None, openapi_url=None)
        for path, handler in {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/embeddings": self._embeddings,
            "/v1/rerank": self._rerank,
        }.items():
            self.app.add_route(path, self._guarded(path, handler), methods=["POST"])
        self.app.add_route("/v1/models", self._guarded("/v1/models", self._models), methods=["GET"])
        self.app.add_route(
            "/v1/models/{name:path}", self._guarded("/v1/models", self._model), methods=["GET"]
        )
        self.app.add_route("/health", self._health, methods=["GET"])
        self.app.add_route("/metrics", self._figures, methods=["GET"])
        self.app.add_exception_handler(HTTPException, _of_starlette)
        self.app.add_exception_handler(ApiError, _of_backend)

    def _guarded(
        self, endpoint: str, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The handler with the check of the key, the time limit, and errors in OpenAI's form."""

        async def guarded(request: Request) -> Response:
            with self._metrics.request(endpoint) as outcome:
                try:
                    check_key(request, self._key)
                    return await asyncio.wait_for(handler(request), self._limits.seconds)
                except asyncio.TimeoutError:
                    error = timed_out(self._limits.seconds)
                except ClientDisconnect:
                    outcome["status"] = CLOSED
                    return Response(status_code=CLOSED)
                except ApiError as known:
                    error = known
                except Exception as unknown:
                    error = unexpected("the request failed", unknown)
                outcome["status"] = error.status
                headers = {"Retry-After": "1"} if error.status == 503 else None
                return JSONResponse(error.body, error.status, headers)

        return guarded

    async def _parsed(self, request: Request, kind: type[Parsed]) -> Parsed:
        """The request's body. ApiError names the first field that is wrong."""
        value = await read_json(request, self._limits)
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or None
            message, code = first["msg"].removeprefix("Value error, "), None
            if first["type"] == "extra_forbidden":
                message, code = "this server does not support the field", "unsupported_parameter"
                near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, n=1)
                message += f"; did you mean {near[0]}?" if near else ""
            raise bad_request(f"{place}: {message}" if place else message, place, code) from None

    async def _chat(self, request: Request) -> Response:
        asked = await self._parsed(request, schemas.ChatRequest)
        tools = None if asked.tool_choice == "none" else asked.tools
        call = Call(asked.model, messages=asked.messages, tools=tools, top=asked.top)
        calls = self._sampled(call, asked, asked.limit)
        return await self._answered("chat.completion", request, calls, asked)

    async def _completions(self, request: Request) -> Response:
        asked = await self._parsed(request, schemas.CompletionRequest)
        if len(asked.prompts) * (asked.n or 1) > schemas.MAX_CHOICES:
            raise bad_request(
                f"at most {schemas.MAX_CHOICES} answers per request (prompts times n)", "prompt"
            )
        calls = [
            one
            for prompt in asked.prompts
            for one in self._sampled(Call(asked.model, prompt=prompt, top=asked.top), asked, asked.limit)
        ]
        return await self._answered("text_completion", request, calls, asked)

    def _sampled(self, call: Call, asked: schemas.Sampling, limit: int | None) -> list[Call]:
        """The call `n` times, with its limit and its sampling."""
        most = self._limits.max_tokens
        if limit is not None and limit > most:
            raise bad_request(f"max_tokens is at most {most} on this server", "max_tokens")
        max_tokens = limit if limit is not None else min(schemas.DEFAULT_MAX_TOKENS, most)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed & 0xFFFFFFFFFFFFFFFF
        top_p = 1.0 if asked.top_p is None else asked.top_p
        return [
            replace(
                call,
                max_tokens=max_tokens,
                stops=asked.stops,
                sampling=Sampling(asked.temperature or 0.0, top_p, seed),
                number=number,
            )
            for number in range(asked.n or 1)
        ]

    async def _answered(
        self, kind: str, request: Request, calls: Sequence[Call], asked: schemas.Sampling
    ) -> Response:
        answers = Answers(
            self._backend,
            kind,
            calls,
            self._metrics,
            self._limits.seconds,
            token_ids=bool(asked.return_token_ids),
        )
        if not asked.stream:
            return JSONResponse(await _or_gone(request, answers.whole()))
        await answers.start()  # a request that is refused has a status, and no stream
        return StreamingResponse(
            answers.events(includes_usage=asked.includes_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def _embeddings(self, request: Request) -> Response:
        asked = await self._parsed(request, schemas.EmbeddingsRequest)
        work = self._backend.embed(
            EmbedCall(asked.model, asked.texts, asked.instruction, asked.dimensions, asked.truncate)
        )
        vectors, tokens = await _or_gone(request, work)
        self._metrics.prompt_tokens.labels(asked.model).inc(tokens)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector if asked.encoding_format == "float" else _base64(vector),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": asked.model, "data": data, "usage": usage})

    async def _rerank(self, request: Request) -> Response:
        asked = await self._parsed(request, schemas.RerankRequest)
        work = self._backend.rerank(RerankCall(asked.model, asked.query, asked.documents, asked.truncate))
        scores = await _or_gone(request, work)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": scores[index]} for index in order
        ]
        for result in results if asked.return_documents else ():
            result["document"] = {"text": asked.documents[result["index"]]}
        return JSONResponse({"model": asked.model, "results": results})

    async def _models(self, request: Request) -> Response:
        cards = [self._card(name, can) for name, can in (await self._backend.models()).items()]
        return JSONResponse({"object": "list", "data": cards})

    async def _model(self, request: Request) -> Response:
        models, name = await self._backend.models(), request.path_params["name"]
        if name not in models:
            raise unknown_model(name, list(models))
        return JSONResponse(self._card(name, models[name]))

    def _card(self, name: str, can: list[str]) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "tailor",
            "supports": can,
        }

    async def _health(self, request: Request) -> Response:
        """200 when the backend answers."""
        try:
            await asyncio.wait_for(self._backend.load(), self._limits.body_seconds)
        except Exception as error:
            return JSONResponse(failed(f"the models do not answer ({type(error).__name__})").body, 503)
        return JSONResponse({"status": "ok"})

    async def _figures(self, request: Request) -> Response:
        return Response(
            self._metrics.text(await self._backend.load()), media_type="text/plain; version=0.0.4"
        )


async def _or_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of work that stops when the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _base64(vector: Sequence[float]) -> str:
    """float32, little-endian, as OpenAI's client reads it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _of_backend(request: Request, error: Exception) -> Response:
    """Replicas that do not answer, at paths without `_guarded`."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status)


async def _of_starlette(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    what = "method" if error.status_code == 405 else "path"
    return JSONResponse(
        ApiError(error.status_code, f"unknown {what}: {request.method} {request.url.path}").body,
        error.status_code,
        error.headers,
    )
