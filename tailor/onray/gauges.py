"""A run's newest figures as gauges of Ray, which Prometheus reads from each machine of a cluster."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from tailor.track.figures import curves

if TYPE_CHECKING:
    from tailor.store import Store

PREFIX = "tailor_"
"""Ray puts `ray_` before it."""


def figure(kind: str, key: str) -> str:
    """The name of a record's figure, without the prefix."""
    return re.sub(r"\W", "_", key if kind == "train" else f"{kind}_{key}")


class Gauges:
    """`tailor_loss`, `tailor_tokens_per_second`, `tailor_evaluation_loss` …, each with the run's folder as its `run`.

    They go with the worker that trains: what stays is the run's own log.
    """

    def __init__(self, run: Store, steps: int) -> None:
        self._tags = {"run": run.url}
        self._steps = steps
        self._gauges: dict[str, Any] = {}

    def write(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self._set("step", record["step"])
            self._set("steps", self._steps)  # with each step: a gauge that is set once is offered once
        for kind, key, value in curves(record):
            self._set(figure(kind, key), value)

    def close(self, *, finished: bool) -> None:
        pass

    def _set(self, key: str, value: float) -> None:
        from ray.util.metrics import Gauge

        if not math.isfinite(value):
            return
        name = PREFIX + key
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=f"{key} of a tailor run", tag_keys=("run",))
        self._gauges[name].set(value, tags=self._tags)
