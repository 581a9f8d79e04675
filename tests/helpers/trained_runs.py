"""Finished runs, trained for six steps on a tiny model, with everything that a command leaves in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tailor.data.token_store import TokenStore
from tailor.encode.template import load_template
from tailor.runs import environment
from tailor.runs.log import MetricsLog
from tailor.runs.report import page
from tailor.runs.status import Status
from tailor.store import Store
from tailor.train import loop
from tests.helpers.hosts import PlainHost
from tests.helpers.models import tiny_llama
from tests.helpers.plans import make_plan
from tests.helpers.run_folders import RECIPE
from tests.helpers.tokens import write_tokens

IM_END = 4


def chat_tokens(folder: Path, template: str) -> TokenStore:
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randint(5, 261, (24,), generator=generator).tolist(), [(8, 24)]) for _ in range(8)]
    chosen = {"name": template, "text": load_template(template).text, "end_of_turn_ids": [IM_END]}
    return write_tokens(str(folder), {"train": rows, "evaluation": rows[:3]}, template=chosen)


def finished_run(
    folder: Path,
    model: dict[str, Any],
    *,
    template: str = "chatml",
    make: Callable[..., Path] = tiny_llama,
    **base: Any,
) -> Path:
    """A run in `folder`/run on a base in `folder`/base, made by `make`."""
    path, run = make(folder / "base", **base), folder / "run"
    tokens = chat_tokens(folder / "tokens", template)
    host = PlainHost()
    plan = make_plan(path, tokens, run, model=model, optim={"learning_rate": 2e-2})
    loop.run(plan, host)
    store = Store(str(run))
    store.write_json("plan.json", plan.as_dict())
    store.write_text("recipe.yaml", RECIPE.format(to=run))
    lengths = {"p50": 24, "max": 24}
    source = {
        "path": "hf://owner/data",
        "format": "messages",
        "rows": 8,
        "kept": 8,
        "unreadable": {},
        "dropped": {},
    }
    source |= {"truncated": 0, "chunked": 0, "tokens": 192, "supervised_tokens": 128, "lengths": lengths}
    store.write_json("data.json", {"template": template, "sources": [source], "tokens": tokens.url})
    store.write_json("environment.json", environment.describe())
    log = MetricsLog(store)
    for record in host.records:
        log.write(record)
    log.close()
    Status("finished", "2026-01-02T10:00:00.000+00:00", "2026-01-02T10:01:00.000+00:00", 6, 6).write(store)
    page.write(store)
    (run / "logs").mkdir()
    (run / "logs" / "worker-0.log").write_text("a traceback")
    return run


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())
