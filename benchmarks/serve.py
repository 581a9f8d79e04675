"""Throughput of `tailor serve` beside `transformers serve`, on the same model and the same requests.

    python benchmarks/serve.py MODEL [--requests 64] [--concurrency 16] [--tokens 64] [--adapters RUN RUN]

MODEL: a folder with a chat template, in the dtype to serve. Both servers run one after the other on this machine, answer each
request greedily, and ignore nothing: generated tokens are counted by their `usage`. With --adapters, `tailor serve` is measured
once more, with the requests spread over these runs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

WORDS = [
    "wool",
    "linen",
    "cloth",
    "bread",
    "road",
    "sea",
    "wind",
    "harbour",
    "needle",
    "thread",
    "hem",
    "sleeve",
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--adapters", nargs="*", default=[])
    parser.add_argument("--port", type=int, default=18000)
    args = parser.parse_args()
    bin = Path(sys.executable).parent
    tailor, transformers = str(bin / "tailor"), str(bin / "transformers")
    port = str(args.port)
    name = Path(args.model).name
    commands = {
        "tailor serve": ([tailor, "serve", args.model, "--port", port], [name]),
        "transformers serve": ([transformers, "serve", "--port", port, args.model], [args.model]),
        "transformers serve --continuous-batching": (
            [transformers, "serve", "--port", port, "--continuous-batching", args.model],
            [args.model],
        ),
    }
    if args.adapters:
        names = [Path(run).name for run in args.adapters]
        commands["tailor serve, adapters"] = ([tailor, "serve", *args.adapters, "--port", port], names)
    print(f"{args.requests} requests, {args.concurrency} at a time, {args.tokens} tokens each")
    for label, (command, models) in commands.items():
        print(f"{label:42}{measured(command, models, args)}", flush=True)


def measured(command: list[str], models: list[str], args: argparse.Namespace) -> str:
    if shutil.which(command[0]) is None:
        return "is not installed"
    url = f"http://127.0.0.1:{args.port}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    try:
        if not answers(url, server, models[0]):
            assert server.stderr is not None
            server.kill()
            return f"does not answer: {server.stderr.read().decode()[-300:].strip()}"
        chooser = random.Random(0)
        texts = [" ".join(chooser.choices(WORDS, k=chooser.randint(2, 40))) for _ in range(args.requests)]
        began = time.monotonic()
        with ThreadPoolExecutor(args.concurrency) as pool:
            jobs = [
                pool.submit(ask, url, models[at % len(models)], text, args.tokens)
                for at, text in enumerate(texts)
            ]
            tokens = sum(job.result() for job in jobs)
        seconds = time.monotonic() - began
        return (
            f"{tokens / seconds:8.1f} tokens/s  {args.requests / seconds:6.2f} requests/s  ({tokens} tokens)"
        )
    except (httpx.HTTPError, KeyError) as error:
        return f"failed: {type(error).__name__}: {error}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(url: str, server: subprocess.Popen[bytes], model: str) -> bool:
    """Wait until the server has answered a first request, which may load the model."""
    until = time.monotonic() + 300
    while time.monotonic() < until and server.poll() is None:
        try:
            ask(url, model, "Hi", 2)
            return True
        except (httpx.HTTPError, KeyError):
            time.sleep(1)
    return False


def ask(url: str, model: str, text: str, tokens: int) -> int:
    """The number of generated tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": False,
    }
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    reply.raise_for_status()
    return int(reply.json()["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()
