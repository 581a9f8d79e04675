"""Requests that cannot be answered: each gets an error in OpenAI's form, and no other request notices."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tailor.errors import DataError
from tailor.serve import server as servers
from tailor.serve.backend import LocalBackend
from tailor.spec.serving import Limits
from tests.helpers import serving
from tests.helpers.serving import Served

CHAT = {"model": "red", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which must have OpenAI's form."""
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return dict(error)


WRONG: dict[str, tuple[Any, str | None]] = {
    "not JSON": (b'{"model": ', None),
    "empty": (b"", None),
    "no object": (b"[1]", None),
    "deep": (b'{"a":' + b"[" * 100_000, None),
    "no UTF-8": (b'{"model": "\xff"}', None),
    "no model": ({**CHAT, "model": None}, "model"),
    "no messages": ({"model": "red"}, "messages"),
    "empty messages": ({**CHAT, "messages": []}, "messages"),
    "no role": ({**CHAT, "messages": [{"content": "Hi"}]}, "messages"),
    "unknown role": ({**CHAT, "messages": [{"role": "robot", "content": "Hi"}]}, "messages"),
    "assistant last": (
        {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "x"}]},
        "messages",
    ),  # type: ignore[misc]
    "surrogate": (b'{"model": "red", "messages": [{"role": "user", "content": "\\ud800"}]}', "messages"),
    "surrogate name": (b'{"model": "red", "\\udc80": 1}', "\\udc80"),
    "surrogate tool": (b'{"model": "red", "messages": [], "tools": [{"\\ud800": 1}]}', "tools"),
    "unknown field": ({**CHAT, "tempreature": 1}, "tempreature"),
    "not a number": (json.dumps({**CHAT, "temperature": float("nan")}).encode(), "temperature"),
    "too hot": ({**CHAT, "temperature": 3}, "temperature"),
    "no token": ({**CHAT, "max_tokens": 0}, "max_tokens"),
    "many tokens": ({**CHAT, "max_tokens": 10**9}, "max_tokens"),
    "many choices": ({**CHAT, "n": 1000}, "n"),
    "a number in a text": ({**CHAT, "max_tokens": "4"}, "max_tokens"),
    "true for a number": ({**CHAT, "max_tokens": True}, "max_tokens"),
    "a text for true": ({**CHAT, "stream": "yes"}, "stream"),
    "one call at most": ({**CHAT, "parallel_tool_calls": False}, "parallel_tool_calls"),
    "a certain tool": ({**CHAT, "tool_choice": "required"}, "tool_choice"),
    "part of an option": ({**CHAT, "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    "penalty": ({**CHAT, "frequency_penalty": 1}, "frequency_penalty"),
    "JSON mode": ({**CHAT, "response_format": {"type": "json_object"}}, "response_format.type"),
    "image": ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
}


@pytest.mark.parametrize("case", WRONG)
def test_malformed_requests(server: Served, case: str) -> None:
    body, param = WRONG[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = error_of(httpx.post(f"{server.url}/chat/completions", content=content), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_an_unknown_field_is_named_with_the_one_that_was_meant(server: Served) -> None:
    error = error_of(server.chat("Hi", tempreature=1), 400)
    assert error["message"] == (
        "tempreature: this server does not support the field; did you mean temperature?"
    )
    assert error["code"] == "unsupported_parameter"


def test_a_prompt_that_cannot_be_used_beside_slow_ones(server: Served) -> None:
    prompts = ["x" * 600] + ["y" * 200_000] * 6
    error = error_of(server.post("completions", {"model": "red", "prompt": prompts}), 400)
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": [True]}, "prompt"),
        ("completions", {"prompt": "x", "stop": ""}, "stop"),
        ("completions", {"prompt": "x", "stop": ["x", 1]}, "stop"),
        ("embeddings", {"input": [1, 2]}, "input"),
    ],
)
def test_an_error_of_a_field_with_several_types_names_the_field(
    server: Served, path: str, fields: dict[str, Any], param: str
) -> None:
    error = error_of(server.post(path, {"model": "red", **fields}), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: must be a text")


def test_unknown_models_paths_and_methods(server: Served) -> None:
    assert (
        error_of(server.post("chat/completions", {**CHAT, "model": "green"}), 404)["code"]
        == "model_not_found"
    )
    error_of(server.post("nothing", {}), 404)
    error_of(httpx.get(f"{server.url}/chat/completions"), 405)


@pytest.fixture
def limited(server: Served) -> Callable[[Limits], Any]:
    """The same models behind other limits."""
    return lambda limits: serving.http(server.backend, limits)


def test_a_large_body(limited: Any) -> None:
    with limited(Limits(body_bytes=1000)) as served:
        assert served.chat("x" * 100).status_code == 200
        assert error_of(served.chat("x" * 2000), 413)["code"] == "request_too_large"

        def endless() -> Any:  # no content-length
            for _ in range(100):
                yield b" " * 100

        error_of(httpx.post(f"{served.url}/chat/completions", content=endless()), 413)
        assert served.chat("x").status_code == 200


def test_a_slow_body_and_a_slow_answer(limited: Any) -> None:
    with limited(Limits(body_seconds=0.2)) as served:
        host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
            )
            assert served.chat("x").status_code == 200, "another request does not wait for it"
            assert b" 408 " in connection.recv(1 << 16)
    with limited(Limits(seconds=0.05)) as served:
        whole = served.chat("Hi", max_tokens=400)
        assert error_of(whole, 504)["code"] == "timeout"
        stream = served.chat("Hi", max_tokens=400, stream=True)
        last = stream.text.strip().split("\n\n")[-1]
        if stream.status_code == 200:
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [True, False])
def test_an_aborted_request_frees_its_row(server: Served, stream: bool) -> None:
    backend = server.backend
    assert isinstance(backend, LocalBackend)
    before = backend._engine.steps
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({**CHAT, "max_tokens": 450, "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while backend._engine.steps < before + 5:
            time.sleep(0.001)
    while backend._engine.active:
        time.sleep(0.001)
    assert backend._engine.steps - before < 449, "the answer was not generated to its end"
    assert server.chat("Hi").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_of_the_model_ends_its_answers_only(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: bool
) -> None:
    from tailor.evaluate.continuous import ContinuousBatch

    taken: list[int] = []

    def broken(batch: ContinuousBatch) -> Any:
        taken.append(1)
        if len(taken) == 3:
            raise RuntimeError("out of memory at /secret/path")
        return step(batch)

    step = ContinuousBatch.step
    monkeypatch.setattr(ContinuousBatch, "step", broken)
    reply = server.chat("Hi", max_tokens=50, stream=stream)
    if stream:
        assert reply.status_code == 200
        error = json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        assert "[DONE]" not in reply.text
    else:
        error = error_of(reply, 500)
    assert error["message"] == "the answer could not be continued (RuntimeError)"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "internal error: the answer could not be continued: RuntimeError at test_limits.py:"
    )
    assert " broken < engine.py:" in line
    assert "secret" not in line
    assert server.chat("Hi").status_code == 200


def test_log_probabilities_that_are_no_numbers(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from tailor.evaluate.continuous import Answer

    def take(answer: Answer, logits: Any) -> int:
        token = taken(answer, logits)
        answer.logprob = float("nan")
        answer.top = [(id, float("-inf")) for id, _ in answer.top]
        return token

    taken = Answer.take
    monkeypatch.setattr(Answer, "take", take)
    (entry, *_) = server.chat("Hi", logprobs=True, top_logprobs=1).json()["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == -9999
    text = server.post("completions", {"model": "red", "prompt": "Hi", "logprobs": 1, "max_tokens": 2}).text
    assert "-9999" in text
    assert "NaN" not in text


def test_log_probabilities_of_a_model_without_batches(
    adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailor.evaluate import continuous

    monkeypatch.setattr(continuous, "row_sizes", lambda model: ())
    with serving.local({"red": adapters["red"]}) as served:
        assert served.chat("Hi").status_code == 200
        assert error_of(served.chat("Hi", logprobs=True), 400)["param"] == "logprobs"


def test_the_key(server: Served) -> None:
    with serving.http(server.backend, key="right") as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
            error = error_of(served.post("chat/completions", CHAT, headers=headers), 401)
            assert "right" not in json.dumps(error)
        assert (
            served.post("chat/completions", CHAT, headers={"Authorization": "Bearer right"}).status_code
            == 200
        )
        root = served.url.removesuffix("/v1")
        assert httpx.get(f"{root}/health").json() == {"status": "ok"}
        figures = httpx.get(f"{root}/metrics").text
        assert 'tailor_requests_total{endpoint="/v1/chat/completions",status="401"} 3.0' in figures
        assert 'tailor_generated_tokens_total{model="red"} 4.0' in figures


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAILOR_API_KEY", raising=False)
    assert servers.api_key() is None
    monkeypatch.setenv("TAILOR_API_KEY", "abc\n")
    with pytest.raises(DataError, match="TAILOR_API_KEY"):
        servers.api_key()


@pytest.mark.parametrize(
    ("host", "key", "open_to_all", "allowed"),
    [
        ("127.0.0.1", None, False, True),
        ("::1", None, False, True),
        ("localhost", None, False, True),
        ("0.0.0.0", None, False, False),
        ("10.1.2.3", None, False, False),
        ("example.org", None, False, False),
        ("0.0.0.0", "key", False, True),
        ("0.0.0.0", None, True, True),
    ],
)
def test_other_machines_need_a_key(host: str, key: str | None, open_to_all: bool, allowed: bool) -> None:
    if allowed:
        servers.require_protection(host, key, open_to_all=open_to_all)
    else:
        with pytest.raises(DataError, match="no API key"):
            servers.require_protection(host, key, open_to_all=open_to_all)
