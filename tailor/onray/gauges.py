"""Exports the newest metrics of a run as Ray gauges, which Prometheus scrapes from every node of a cluster."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from tailor.track.figures import curves

if TYPE_CHECKING:
    from tailor.store import Store

PREFIX = "tailor_"
"""Ray adds `ray_` in front: `ray_tailor_loss`."""


def figure(kind: str, key: str) -> str:
    """The gauge name of a record's metric, without the prefix: `loss`, `evaluation_loss`."""
    return re.sub(r"\W", "_", key if kind == "train" else f"{kind}_{key}")


class Gauges:
    """`tailor_loss`, `tailor_tokens_per_second`, `tailor_evaluation_loss` …, each labeled with the run folder (`run`).

    Gauges disappear with rank 0's process. The permanent record is `metrics.jsonl` in the run folder.
    """

    def __init__(self, run: Store, steps: int) -> None:
        self._tags = {"run": run.url}
        self._steps = steps
        self._gauges: dict[str, Any] = {}

    def write(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self._set("step", record["step"])
            self._set(
                "steps", self._steps
            )  # at every step, because Ray exports a gauge only after it was set
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
