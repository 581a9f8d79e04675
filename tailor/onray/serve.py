"""Serves models from replicas on Ray Serve: `tailor serve --replicas`, and the application of a RayService.

A replica holds the engine and all models. The HTTP server is a process of its own (with `--replicas` this one, in a RayService
the deployment `Http`): when a replica dies, it still ends the streams of that replica with an error, and sends the next
request to another one.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tailor.errors import ModelError, ScaleError
from tailor.models.own_code import NOTHING, Trust
from tailor.onray.cluster import connect, threads
from tailor.quiet import quiet
from tailor.serve.backend import LocalBackend
from tailor.serve.calls import Call, EmbedCall, Load, Piece, RerankCall
from tailor.serve.errors import ApiError, failed
from tailor.serve.server import DRAIN_SECONDS, api_key
from tailor.spec.scale import Scale
from tailor.spec.serving import Limits

MODELS, HTTP = "Models", "Http"
"""Names of the deployments."""
APPLICATION = "tailor"
_ONGOING = 4096
"""Requests that Ray Serve passes to a replica; the engine refuses what is over its own limit, with an error of OpenAI's form."""


def run(
    runs: dict[str, str],
    replicas: int,
    limits: Limits,
    sock: socket.socket,
    key: str | None,
    started: Callable[[], None],
    *,
    trust: Trust = NOTHING,
    verbose: bool = False,
) -> None:
    """Serve from `replicas` copies of the models, over HTTP in this process, until a signal ends it.

    Raises ModelError when the models cannot be loaded, ScaleError when the machine or cluster has no room for the replicas.
    """
    from tailor.serve import server

    cluster = connect(Scale(workers=replicas), verbose=verbose)
    share = _share(cluster.cpus, cluster.gpus, replicas)
    from ray import serve

    try:
        with hosted(runs, replicas, limits.waiting, trust, share) as backend:
            server.run(backend, limits, sock, key, started)
    finally:
        serve.shutdown()


def _share(cpus: float, gpus: float, replicas: int) -> dict[str, float]:
    """The resources of one replica. ScaleError when they are not there."""
    if gpus:
        if replicas > gpus:
            raise ScaleError(
                f"{replicas} replicas need a GPU each, and there are {gpus:g}", hint="lower --replicas"
            )
        return {"num_cpus": max(1.0, min(4.0, cpus // replicas)), "num_gpus": 1.0}
    # One CPU stays for Ray Serve's controller.
    each = max(cpus - 1, 0.5) / replicas
    return {"num_cpus": float(int(each)) if each >= 1 else round(each, 2)}


@contextmanager
def hosted(
    runs: dict[str, str], replicas: int, waiting: int, trust: Trust, share: dict[str, float]
) -> Iterator[HandleBackend]:
    """Context with the models in replicas on the Ray instance that this process is connected to.

    Ray Serve opens no port: requests come through the backend only. share: Ray resources of one replica.
    """
    from ray import serve

    serve.start(proxy_location="Disabled")
    try:
        application = models(runs, waiting, trust, share, num_replicas=replicas)
        handle = serve.run(application, name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise ModelError(
            "the models could not be loaded in a Ray Serve replica",
            hint="load them with `tailor generate`, which shows why",
        ) from error
    try:
        yield HandleBackend(handle)
    finally:
        serve.delete(APPLICATION)


def models(runs: dict[str, str], waiting: int, trust: Trust, share: dict[str, float], **options: Any) -> Any:
    """The deployment with the models. options: of the deployment, such as `num_replicas`."""
    from ray import serve

    return serve.deployment(
        _Models,
        name=MODELS,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options=share,
        health_check_period_s=2,
        **options,
    ).bind(runs, waiting, trust, threads(share["num_cpus"]))


class _Models:
    """A replica: the engine with all models."""

    def __init__(self, runs: dict[str, str], waiting: int, trust: Trust, cpu_threads: int) -> None:
        import torch

        from tailor.artifacts.shared_base import load_together

        quiet()
        torch.set_num_threads(cpu_threads)
        self._backend = LocalBackend(load_together(runs, trust=trust), max_waiting=waiting)

    async def models(self) -> dict[str, list[str]]:
        return await self._backend.models()

    async def load(self) -> Load:
        return await self._backend.load()

    async def answer(self, call: Call) -> AsyncIterator[Piece]:
        async for piece in self._backend.answer(call):
            yield piece

    async def embed(self, call: EmbedCall) -> tuple[list[list[float]], int]:
        return await self._backend.embed(call)

    async def rerank(self, call: RerankCall) -> list[float]:
        return await self._backend.rerank(call)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self._backend.is_alive:
            raise RuntimeError("the engine's thread has ended")


class HandleBackend:
    """The models in the replicas of a deployment. Errors of replicas become ApiErrors."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def models(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = await self._one("models")
        return found

    async def load(self) -> Load:
        found: Load = await self._one("load")
        return found

    async def answer(self, call: Call) -> AsyncIterator[Piece]:
        stream = self._handle.options(stream=True).answer.remote(call)
        finished = False
        try:
            async for piece in stream:
                finished = piece.finish_reason is not None
                yield piece
        except Exception as error:
            finished = True
            raise _api_error(error) from error
        finally:
            if not finished:
                stream.cancel()

    async def embed(self, call: EmbedCall) -> tuple[list[list[float]], int]:
        found: tuple[list[list[float]], int] = await self._one("embed", call)
        return found

    async def rerank(self, call: RerankCall) -> list[float]:
        found: list[float] = await self._one("rerank", call)
        return found

    async def _one(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except Exception as error:
            raise _api_error(error) from error


def _api_error(error: Exception) -> ApiError:
    """The error of a request that a replica did not answer. Ray wraps what the replica raised."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, ApiError):
        return cause
    return failed(f"the model's replica stopped before the answer was finished ({type(error).__name__})")


def application(settings: dict[str, Any]) -> Any:
    """The application of a RayService, which its manifest names: the deployments `Http` and `Models`.

    settings: runs (name -> folder), num_cpus and num_gpus of a replica, limits (of `Limits`) and trust_remote_code. The
    manifest has the numbers of replicas.
    """
    from ray import serve

    limits = Limits(**settings["limits"])
    share = {name: float(settings[name]) for name in ("num_cpus", "num_gpus") if settings.get(name)}

    def app() -> Any:
        from tailor.serve.app import make_app

        return make_app(
            HandleBackend(serve.get_deployment_handle(MODELS, app_name=APPLICATION)), limits, api_key()
        )

    http = serve.deployment(
        serve.ingress(app)(),
        name=HTTP,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_cpus": 0.5},
    )
    trust = NOTHING
    if settings.get("trust_remote_code"):
        from tailor.artifacts.trust import trust_of

        trust = trust_of(list(settings["runs"].values()))
    return http.bind(models(settings["runs"], limits.waiting, trust, share))
