"""Two hundred prompts at concurrency 32, and a flood of bad requests beside them."""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tailor.serve.backend import LocalBackend
from tests.helpers import serving
from tests.helpers.adapters import random_adapter
from tests.serve.test_openai_client import generated

pytestmark = pytest.mark.soak
COUNT, CONCURRENCY = 200, 32


def prompts() -> list[str]:
    chooser = random.Random(0)
    words = ["wool", "linen", "cloth", "bread", "road", "sea", "wind", "harbour"]
    return [" ".join(chooser.choices(words, k=chooser.randint(1, 30))) for _ in range(COUNT)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_under_load_are_those_of_generate(dtype: str, tmp_path: Path) -> None:
    """TAILOR_REAL_MODEL: a base with real weights; by default a tiny one."""
    real = os.environ.get("TAILOR_REAL_MODEL")
    if real:
        runs = {
            name: str(random_adapter(tmp_path / name, Path(real), seed=at, dtype=dtype, size=0.02))
            for at, name in enumerate(("red", "blue"))
        }
        from shutil import copy

        for run in runs.values():
            for file in ("tokenizer.json", "tokenizer_config.json"):
                copy(Path(real) / file, run)
    else:
        runs = serving.two_adapters(tmp_path / "runs", dtype)
    texts = prompts()
    names = [("red", "blue")[at % 2] for at in range(COUNT)]
    expected = {
        name: dict(zip(texts, generated(run, texts, tmp_path), strict=True)) for name, run in runs.items()
    }
    with serving.local(runs) as served, ThreadPoolExecutor(CONCURRENCY) as pool:
        replies = pool.map(
            lambda job: served.chat(job[1], model=job[0], max_tokens=12).json(),
            zip(names, texts, strict=True),
        )
        answers = [reply["choices"][0]["message"]["content"] for reply in replies]
    wrong = [at for at in range(COUNT) if answers[at] != expected[names[at]][texts[at]]]
    assert wrong == []


def test_bad_requests_disturb_no_other(tmp_path: Path) -> None:
    runs = serving.two_adapters(tmp_path)
    chooser = random.Random(1)
    with serving.local(runs) as served:
        host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
        expected = {name: served.chat("Hi", model=name).json()["choices"] for name in runs}
        process = psutil.Process()

        def bad(kind: int) -> None:
            url = f"{served.url}/chat/completions"
            if kind == 0:
                assert "error" in httpx.post(url, content=b"{" * 1000).json()
            elif kind == 1:
                assert httpx.post(url, content=b" " * (5 << 20)).status_code == 413
            elif kind == 2:  # an answer that nobody reads to its end
                body = json.dumps(
                    {"model": "red", "prompt": "Hi", "max_tokens": 400, "stream": True}
                ).encode()
                with socket.create_connection((host, int(port))) as connection:
                    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(head.encode() + body)
                    connection.recv(10)
            else:  # a request that never arrives
                with socket.create_connection((host, int(port))) as connection:
                    connection.sendall(
                        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{"
                    )

        def good(name: str) -> None:
            assert served.chat("Hi", model=name).json()["choices"] == expected[name]

        def round_of(size: int) -> None:
            with ThreadPoolExecutor(CONCURRENCY) as pool:
                jobs = [pool.submit(bad, chooser.randrange(4)) for _ in range(size)]
                jobs += [pool.submit(good, chooser.choice(list(runs))) for _ in range(size // 2)]
                for job in jobs:
                    job.result()

        def used() -> int:
            """Bytes in use, without those that the allocator keeps, also for the threads of the clients in this process."""
            ctypes.CDLL(None).malloc_trim(0)
            return process.memory_info().rss

        round_of(200)
        round_of(200)
        before = used()
        round_of(600)
        assert used() - before < 64 << 20
        backend = served.backend
        assert isinstance(backend, LocalBackend)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(good, "red").result()
        assert backend._engine.waiting == 0
