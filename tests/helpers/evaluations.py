"""A trained run small enough for every test of evaluation, and a display that keeps what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tailor
from tailor.onray.cluster import Cluster
from tailor.onray.display import Display
from tailor.onray.evaluate import Evaluated, evaluate
from tailor.spec.load import with_overrides
from tailor.spec.tasks.registry import task_class
from tests.helpers.models import tiny_llama

RECIPE = """\
model: {{path: {base}, adapter: {{rank: 4}}}}
data: {{train: [{{path: {rows}}}], holdout: 0.3, max_length: 128}}
method: {{name: sft}}
optim: {{learning_rate: 0.01}}
train: {{steps: {steps}, batch_size: 4, precision: fp32}}
save: {{to: {run}}}
"""


class Shown(Display):
    """Takes the place of the display."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def evaluating(self, done: int, total: int, seconds_left: float | None) -> None:
        self.progress.append((done, total))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def make_recipe(folder: Path, *, steps: int = 4, more: str = "") -> Path:
    """A recipe of a tiny model and sixty conversations, for a run at `folder/runs/tiny`."""
    if not (folder / "base").exists():
        tiny_llama(folder / "base", max_position_embeddings=256)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": f"It is {number % 3}."},
            ]
        }
        for number in range(60)
    ]
    write_rows(folder / "rows.jsonl", rows)
    recipe = folder / "recipe.yaml"
    text = RECIPE.format(
        base=folder / "base", rows=folder / "rows.jsonl", run=folder / "runs" / "tiny", steps=steps
    )
    recipe.write_text(text + more)
    return recipe


SHORT = {"decoding": {"max_new_tokens": 8, "batch_size": 4}}


def make_place(folder: Path) -> Path:
    """A folder with a finished run, `runs/tiny`, and question sets."""
    tailor.load(make_recipe(folder)).run()
    choices = [
        {
            "question": f"{at}?",
            "choices": ["It is 0.", "It is 1.", "Something much longer, say."],
            "answer": at % 2,
        }
        for at in range(5)
    ]
    write_rows(folder / "choices.jsonl", choices)
    facts = [
        {"question": "What?", "facts": ["nothing of this", ["t", "e", "a", "o", "i", "It"]]},
        {"question": "Which?", "facts": ["that is not said"]},
    ]
    write_rows(folder / "facts.jsonl", facts)
    return folder


def made(place: Path, values: dict[str, Any], **settings: Any) -> Evaluated:
    asked = {task["name"] for task in values.get("tasks", [{"name": "f1"}])}
    short = SHORT if any(task_class(name).generates for name in asked) else {}
    suite = with_overrides({**short, **values}, "evaluation", ())
    target = str(settings.pop("target", place / "runs" / "tiny"))
    return evaluate(target, suite, settings.pop("display", Shown()), **{"name": "x", **settings})


def value(outcome: Evaluated, figure: str, model: str = "tiny") -> float:
    (found,) = (
        entry["models"][model]["value"] for entry in outcome.results["figures"] if entry["figure"] == figure
    )
    return float(found)


def all_tasks(place: Path) -> list[dict[str, Any]]:
    return [
        {"name": "perplexity"},
        {"name": "exact_match"},
        {"name": "f1"},
        {"name": "rouge"},
        {"name": "multiple_choice", "data": {"path": str(place / "choices.jsonl")}},
        {"name": "facts", "data": {"path": str(place / "facts.jsonl")}},
    ]


class Joined:
    """The Ray that the tests share, in the place of one that is started."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, *_: Any, **__: Any) -> Joined:
        return self

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait(self) -> Cluster:
        return self._cluster
