"""Models in replicas on Ray Serve: answers, and a replica that dies while it answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import httpx
import openai
import pytest

from tailor.models.own_code import NOTHING
from tailor.onray.cluster import Cluster
from tailor.onray.serve import HandleBackend, hosted
from tests.helpers import serving

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return serving.two_adapters(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def backend(cluster: Cluster, runs: dict[str, str]) -> Iterator[HandleBackend]:
    from ray import serve

    with hosted(runs, 1, 8, NOTHING, {"num_cpus": 0.5}) as found:
        yield found
    serve.shutdown()


def replica_processes() -> list[int]:
    """The process ids of the replicas with the models."""
    from ray._private import state

    actors = state.actors().values()
    return [
        actor["Pid"] for actor in actors if "#Models#" in str(actor["Name"]) and actor["State"] == "ALIVE"
    ]


@pytest.mark.soak
def test_a_replica_that_dies_ends_its_stream_with_an_error(
    backend: HandleBackend, runs: dict[str, str]
) -> None:
    with serving.http(backend) as served, serving.local(runs) as here:
        client = openai.OpenAI(base_url=served.url, api_key="unused", max_retries=0)
        assert [model.id for model in client.models.list()] == ["red", "blue", "base"]
        for name in ("red", "blue"):
            assert (
                served.chat("Hi", model=name).json()["choices"]
                == here.chat("Hi", model=name).json()["choices"]
            )
        assert served.chat("Hi", model="green").status_code == 404
        for path, fields in (("embeddings", {"input": "a"}), ("rerank", {"query": "q", "documents": ["a"]})):
            refused = served.post(path, {"model": "red", **fields, "truncate": True})
            assert f"does not support {path}" in refused.json()["error"]["message"]
        body = {
            "model": "red",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 400,
            "stream": True,
        }
        events = []
        with httpx.stream("POST", f"{served.url}/chat/completions", json=body, timeout=120) as reply:
            for line in reply.iter_lines():
                if line:
                    events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == 3:
                    for process in replica_processes():
                        os.kill(process, signal.SIGKILL)
        assert events[-1]["error"]["code"] == "internal_error"
        assert "replica stopped" in events[-1]["error"]["message"]
        assert served.chat("Hi").json()["choices"] == here.chat("Hi").json()["choices"], (
            "a new replica answers"
        )
