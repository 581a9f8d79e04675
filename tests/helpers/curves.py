"""What a run left, without what differs between two equal runs: times, speeds and places."""

from __future__ import annotations

from typing import Any

from tailor.runs.log import read
from tailor.store import Store

VARYING = (
    "time",
    "url",
    "data_seconds",
    "step_seconds",
    "tokens_per_second",
    "supervised_tokens_per_second",
    "peak_memory_bytes",
)


def curve(run: str) -> list[dict[str, Any]]:
    """The train, evaluation and checkpoint records of a run, in order."""
    return [
        {key: value for key, value in record.items() if key not in VARYING}
        for record in read(Store(run))
        if record["kind"] in ("train", "evaluation", "checkpoint")
    ]


def adapter(run: str) -> bytes:
    return Store(run).read_bytes("adapter/adapter_model.safetensors")
