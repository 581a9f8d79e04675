"""The figures at /metrics, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tailor.serve.calls import Load

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("endpoint", "status")
        own = {"registry": self._registry, "namespace": "tailor"}
        self._requests = Counter("requests", "Finished requests.", labels, **own)
        self._seconds = Histogram(
            "request_seconds",
            "Time from a request to the end of its response.",
            ("endpoint",),
            buckets=_SECONDS,
            **own,
        )
        self.first_token = Histogram(
            "first_token_seconds", "Time from a request to its first token.", buckets=_SECONDS, **own
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", ("model",), **own)
        self.generated_tokens = Counter("generated_tokens", "Generated tokens.", ("model",), **own)
        self._active = Gauge("active_answers", "Answers that are being generated.", **own)
        self._waiting = Gauge("waiting_requests", "Requests that wait for a row of a batch.", **own)
        self._steps = Gauge("decoding_steps", "Decoding steps since the start.", **own)

    @contextmanager
    def request(self, endpoint: str) -> Iterator[dict[str, int]]:
        """Count a request and its time. Yields a mapping whose `status` is that of the response."""
        started, outcome = time.monotonic(), {"status": 200}
        try:
            yield outcome
        finally:
            self._requests.labels(endpoint, str(outcome["status"])).inc()
            self._seconds.labels(endpoint).observe(time.monotonic() - started)

    def text(self, load: Load) -> bytes:
        """The figures in Prometheus' text format."""
        self._active.set(load.active)
        self._waiting.set(load.waiting)
        self._steps.set(load.steps)
        return generate_latest(self._registry)
