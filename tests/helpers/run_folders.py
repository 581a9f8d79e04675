"""Run folders as a run would leave them, made without training."""

from __future__ import annotations

import math
from typing import Any

from tailor.runs.log import MetricsLog
from tailor.runs.status import Status
from tailor.store import Store

RECIPE = """\
model:
  path: base
data:
  train:
    - path: rows.jsonl
method:
  name: sft
optim:
  learning_rate: 0.001
save:
  to: {to}
"""


def train_record(step: int, **values: Any) -> dict[str, Any]:
    """A metric record as the loop makes them."""
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 10,
        "loss": 4 * math.exp(-step / 30) + 0.1,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens": 1000,
        "supervised_tokens": 600,
        "tokens_per_second": 5000.0,
        "supervised_tokens_per_second": 3000.0,
        "padding": 0.01,
        "data_seconds": 0.001,
        "step_seconds": 0.2,
        "peak_memory_bytes": 3 * 2**30,
        **values,
    }


def make_run(url: str, *, state: str = "finished", steps: int = 60, step: int | None = None) -> Store:
    """A run of `steps` steps that stands at `step`."""
    run, at = Store(url), steps if step is None else step
    run.write_text("recipe.yaml", RECIPE.format(to=url))
    run.write_json(
        "plan.json",
        {
            "model": {
                "path": "/models/tiny-base",
                "adapter": {"rank": 8, "dora": False},
                "quantize": {"type": "nf4"},
            },
            "method": {"name": "sft"},
            "tokens_url": "/data/tokens",
            "fingerprint": "f",
            "train_fingerprint": "t",
            "frozen_dtype": "bfloat16",
            "batch_size": 8,
            "batch_tokens": None,
            "max_length": 512,
            "workers": 2,
            "accumulation": 2,
            "micro_batch_size": 2,
            "precision": "bf16",
            "steps_per_epoch": 20,
            "tokens_per_epoch": 20_000,
            "supervised_tokens_per_epoch": 12_000,
            "memory": {"weights": 2**30, "activations": 2**30},
        },
    )
    status = Status(
        state=state,  # type: ignore[arg-type]
        started="2026-01-02T10:00:00.000+00:00",
        ended=None if state == "running" else "2026-01-02T10:03:20.000+00:00",
        step=at,
        steps=steps,
        error="the loss is nan" if state == "failed" else None,
        timings={"prepare": 0.5, "model": 2.0},
    )
    status.write(run)
    log = MetricsLog(run)
    for number in range(1, at + 1):
        log.write(train_record(number))
    if at == steps:
        log.write(
            {
                "kind": "evaluation",
                "step": steps,
                "loss": 0.75,
                "perplexity": 2.117,
                "token_accuracy": 0.9,
                "supervised_tokens": 500,
            }
        )
    log.close()
    return run
