"""The queue of the engine: what waits, what is given up, and an engine that has stopped."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tailor.artifacts.shared_base import LoadedRun, Network
from tailor.encode.embedding_examples import TextTokens
from tailor.evaluate import continuous
from tailor.serve.backend import LocalBackend
from tailor.spec.serving import Limits
from tests.helpers import serving
from tests.serve.test_limits import error_of


def test_abandoned_embeddings_are_not_computed() -> None:
    computed: list[str] = []

    class Embedder:
        class settings:
            dimension = 1

        dimension, max_length = 1, 8

        def encode(self, texts: list[str], instruction: str | None) -> Any:
            computed.extend(texts)
            return np.zeros((len(texts), 1), np.float32)

        def tokenize(self, texts: list[str], instruction: str | None) -> list[TextTokens]:
            return [TextTokens(np.zeros(1, np.int32), [(0, 1)]) for _ in texts]

    backend = LocalBackend([LoadedRun("red", Network(), embedder=Embedder())], max_waiting=8)  # type: ignore[arg-type]
    stop = threading.Event()
    with serving.http(backend) as served:
        backend._engine.call(stop.wait, lambda _: None)
        while backend._engine.waiting:
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/embeddings", json={"model": "red", "input": "left"}, timeout=0.5)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(served.post, "embeddings", {"model": "red", "input": "stayed"})
            while backend._engine.waiting < 2:
                time.sleep(0.01)
            stop.set()
            assert job.result().status_code == 200
    assert computed == ["stayed"]
    backend.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_has_stopped(adapters: dict[str, str]) -> None:
    with serving.local({"red": adapters["red"]}) as served:
        backend, root = served.backend, served.url.removesuffix("/v1")
        assert isinstance(backend, LocalBackend)
        assert httpx.get(f"{root}/health").status_code == 200
        backend._engine.call(sys.exit, lambda _: None)
        backend._engine._thread.join()
        assert error_of(httpx.get(f"{root}/health"), 503)["message"].startswith("the models do not answer")
        for reply in (served.chat("Hi"), httpx.get(f"{root}/metrics")):
            assert error_of(reply, 500)["message"] == "the engine has stopped"


def test_a_full_queue(adapters: dict[str, str]) -> None:
    limits = Limits(waiting=1)
    with serving.local({"red": adapters["red"]}, limits) as served:
        stop, backend = threading.Event(), served.backend
        assert isinstance(backend, LocalBackend)
        backend._engine.call(stop.wait, lambda _: None)  # keeps the engine busy
        while backend._engine.waiting:
            time.sleep(0.01)
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(served.chat, "Hi") for _ in range(4)]
            while sum(job.done() for job in jobs) < 3:
                time.sleep(0.01)
            refused = [job.result() for job in jobs if job.done()]
            stop.set()
            accepted = [job.result() for job in jobs if job.result() not in refused]
        assert len(accepted) == 1
        assert accepted[0].status_code == 200
        for reply in refused:
            assert error_of(reply, 503)["code"] == "overloaded"
            assert "retry-after" in reply.headers


def test_a_model_that_cannot_be_prepared(adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait get the error; they do not wait for an end that never comes."""

    def broken(model: Any) -> Any:
        raise RuntimeError("no memory")

    with serving.local({"red": adapters["red"]}) as served, monkeypatch.context() as patch:
        patch.setattr(continuous, "decoding", broken)
        for _ in range(2):
            error = error_of(served.chat("Hi"), 500)
            assert error["message"] == "the answer could not be continued (RuntimeError)"
        patch.undo()
        assert served.chat("Hi").status_code == 200
