"""`tailor serve` as a process, and the commands that use a server: `tailor chat --url` and `tailor evaluate --url`."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from tailor.cli.main import main
from tailor.serve.calls import Call, Piece
from tests.helpers import serving
from tests.helpers.commands import ForkedCommand
from tests.helpers.evaluations import make_place
from tests.helpers.http_server import served as http_server
from tests.helpers.serving import Served

PATIENCE = 240.0
"""Seconds that the start of a server may take on a machine that is busy with other things."""


def started(run: str, folder: Path) -> tuple[ForkedCommand, str]:
    """A server of the model `mine`, and the line that it has printed."""
    environment = {**os.environ, "TAILOR_API_KEY": "sesame"}
    command = ForkedCommand(["serve", f"mine={run}", "--port", "0"], cwd=folder, env=environment)
    err = command._files[1]
    until = time.monotonic() + PATIENCE
    while "serving" not in (err.read_text() if err.exists() else "") and time.monotonic() < until:
        assert command.poll() is None, err.read_text()
        time.sleep(0.05)
    return command, err.read_text().splitlines()[-1]


def test_a_signal_ends_the_server_after_its_last_answer(adapters: dict[str, str], tmp_path: Path) -> None:
    command, line = started(adapters["red"], tmp_path)
    assert line.startswith("serving mine at http://127.0.0.1:")
    url, body = (
        line.split()[3].rstrip(";"),
        {"model": "mine", "prompt": "Hi", "max_tokens": 300, "stream": True},
    )
    headers = {"Authorization": "Bearer sesame"}
    assert httpx.post(f"{url}/completions", json=body).status_code == 401
    lines = []
    with httpx.stream("POST", f"{url}/completions", json=body, headers=headers, timeout=60) as reply:
        for text in reply.iter_lines():
            lines.append(text)
            if len(lines) == 1:
                command.send_signal(signal.SIGTERM)
    assert "data: [DONE]" in lines, "an answer that has begun is finished"
    out, errors = command.communicate(PATIENCE)
    assert command.returncode == 0
    assert (out, errors.splitlines()) == ("", [line]), "and the key is nowhere"


def test_a_second_signal_ends_the_server_at_once(adapters: dict[str, str], tmp_path: Path) -> None:
    """Its client sees an error, and nobody a traceback."""
    command, line = started(adapters["red"], tmp_path)
    url, headers = line.split()[3].rstrip(";"), {"Authorization": "Bearer sesame"}
    body = {"model": "mine", "prompt": ["Hi"] * 16, "max_tokens": 490, "stream": True}
    with httpx.stream("POST", f"{url}/completions", json=body, headers=headers, timeout=60) as reply:
        for number in (signal.SIGTERM, signal.SIGINT):
            command.send_signal(number)
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            list(reply.iter_lines())
    out, errors = command.communicate(PATIENCE)
    assert (command.returncode, out, errors.splitlines()) == (0, "", [line])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["a/run", "b/run"], "two runs have the name run"),
        (["=x"], "the name or the folder is missing"),
        (["x", "--host", "0.0.0.0"], "there is no API key"),
        (["x", "--host", "192.0.2.1", "--no-key"], "cannot listen at 192.0.2.1:8000"),
        (["x", "--host", "127.0.0.1", "--port", "99999"], "cannot listen at 127.0.0.1:99999"),
        (["x", "--host", "a" * 70, "--no-key"], "cannot listen at aaa"),
        (["x", "--max-replicas", "2"], "--max-replicas has no effect without --manifest"),
    ],
)
def test_what_serve_refuses(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAILOR_API_KEY", raising=False)
    words = words if "--host" in words else [*words, "--port", "0"]
    assert main(["serve", *words]) == 2
    assert message in capsys.readouterr().err


def talk(
    lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", *words, "--max-new-tokens", "6"]) == 0
    return capsys.readouterr().out


def test_chat_with_a_served_model_is_chat_with_the_model(
    server: Served,
    adapters: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["Hi", "And you?", "/reset", "/system Be brief.", "Hi"]
    expected = talk(lines, monkeypatch, capsys, adapters["blue"])
    assert talk(lines, monkeypatch, capsys, "blue", "--url", server.url) == expected
    assert talk(lines, monkeypatch, capsys, "--url", server.url.removesuffix("/v1")) != expected, (
        "the first is red"
    )
    shown = talk(["x" * 600, "Hi"], monkeypatch, capsys, "blue", "--url", server.url)
    assert "the context of the model is 512 tokens" in shown.splitlines()[0]
    assert shown.splitlines()[1:] == expected.splitlines()[:1]


def test_a_server_that_is_not_there_or_has_no_such_model(
    server: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailor.evaluate import chat_endpoint

    monkeypatch.setattr(chat_endpoint, "WAIT", 100.0)
    for words, message in (
        (["--url", "http://127.0.0.1:1"], "does not list its models"),
        (["green", "--url", server.url], "has no model green"),
        (["--url", "ftp://x"], "is not the URL of a server"),
        (["red", "--url", server.url, "--base"], "--base has no effect with --url"),
        (["red", "--url", server.url, "--trust-remote-code"], "--trust-remote-code has no effect with --url"),
        ([], "there is no run to chat with"),
    ):
        assert main(["chat", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_served_embedder_is_no_partner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Models:
        """A backend of several models."""

        def __init__(self, **models: list[str]) -> None:
            self._models = models

        async def models(self) -> dict[str, list[str]]:
            return self._models

        async def answer(self, call: Call) -> AsyncIterator[Piece]:
            yield Piece()
            yield Piece(f"I am {call.model}", "stop")

    both = Models(vectors=["embeddings"], chat=["chat"])
    with serving.http(both) as served:  # type: ignore[arg-type]
        assert talk(["Hi"], monkeypatch, capsys, "--url", served.url) == "I am chat\n"
        assert main(["chat", "vectors", "--url", served.url]) == 2
        assert "the model vectors at" in (shown := capsys.readouterr().err)
        assert "does not support chat\n  hint: it has vectors, chat;" in shown
    with serving.http(Models(vectors=["embeddings"])) as served:  # type: ignore[arg-type]
        assert main(["chat", "--url", served.url]) == 2
        assert "no model at" in capsys.readouterr().err


def test_a_stream_that_is_cut_off_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cut(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(b'{"data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            chunk = json.dumps({"choices": [{"delta": {"content": "half of"}}]})
            self._reply(f"data: {chunk}\n\n".encode())

        def _reply(self, content: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http_server(Cut) as url:
        shown = talk(["Hi"], monkeypatch, capsys, "--url", url)
    assert "the connection ended before the answer did" in shown


@pytest.mark.slow
def test_a_served_run_has_the_figures_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path)
    run = str(place / "runs" / "tiny")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "tasks: [{name: exact_match}, {name: f1}]\ndecoding: {max_new_tokens: 8}\ncompare: none\n"
    )
    assert main(["evaluate", run, "--with", str(suite), "--to", str(tmp_path / "local")]) == 0
    with serving.local({"tiny": run}) as served:
        command = ["evaluate", run, "--url", served.url]
        assert main([*command, "--with", str(suite), "--to", str(tmp_path / "served")]) == 0
        results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("local", "served")]
        assert results[0]["figures"] == results[1]["figures"]
        answers = [(tmp_path / name / "answers.jsonl").read_text() for name in ("local", "served")]
        assert answers[0] == answers[1] != ""
        capsys.readouterr()
        assert main([*command, "tasks=[{name: perplexity}]", "--to", str(tmp_path / "x")]) == 2
        assert "the task perplexity needs more of a model than its answers" in capsys.readouterr().err
        assert main([*command, "compare=base", "--to", str(tmp_path / "x")]) == 2
        assert "a served model is evaluated alone" in capsys.readouterr().err
    with http_server(_Plain) as url:
        assert main(["evaluate", run, "--url", url, "--with", str(suite), "--to", str(tmp_path / "y")]) == 2
        assert "does not return token ids" in capsys.readouterr().err


class _Plain(BaseHTTPRequestHandler):
    """A server without `return_token_ids`."""

    def do_GET(self) -> None:
        self._reply({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply({"choices": [{"text": "x"}]})

    def _reply(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
